"Servers that fail: each fault is retried or told, nothing is lost, nothing invented, what cannot be read is counted."
import json, math, os, threading, time, warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import pytest

from malles.asking import Asked, Unread
from malles.cached import Cached, timed
from malles.chat import LETTERS
from malles.endpoints import Endpoint, SystemOne, served
from malles.wire import EndpointError, Wire
from malles.lm import LM
from malles.runs import Store
from malles.validation import unseen_market
from tiny_models import free_port

ANSWER = [.5, .3, .2]   # of the first three options; the others have none


class Stub:
    "A server on this machine; `turn(number, path, body)` says what the next answer is: a record, a status, bytes, or a number of seconds to wait."
    def __init__(self, turn=lambda n, path, body: good(path, body)):
        stub = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *a): pass
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock: stub.bodies.append(body); n = len(stub.bodies)
                answer, status, headers = stub.turn(n, self.path, body), 200, {}
                if isinstance(answer, tuple): answer, status, headers = answer
                if isinstance(answer, float): time.sleep(answer); answer = good(self.path, body)
                if answer is None: self.connection.close(); self.close_connection = True; return
                raw, cut = (answer, 0) if isinstance(answer, bytes) else (json.dumps(answer).encode(), 0)
                if headers.pop("Cut", None): cut = len(raw) // 2
                self.send_response(status)
                for k, v in dict(headers, **{"Content-Length": str(len(raw))}).items(): self.send_header(k, v)
                self.end_headers()
                try: self.wfile.write(raw[:len(raw) - cut])
                except OSError: pass
                if cut: self.connection.close(); self.close_connection = True
        self.turn, self.bodies, self.lock = turn, [], threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
    def __enter__(self): return self
    def __exit__(self, *a): self.server.shutdown(); self.server.server_close()


def options(body): return sum(line[:3] == f"{LETTERS[k]}. " for k, line in enumerate(l for l in body["messages"][0]["content"].splitlines() if l[1:3] == ". "))


def good(path, body, logprobs=True, text="A"):
    "A right answer, by either protocol."
    if path.endswith("systemone"):
        keys = {name: list(q["criteria"]) for name, q in body["questions"].items()}
        return dict(answers={name: dict(type="choice", probabilities=dict(zip(ks, np.r_[ANSWER, np.zeros(len(ks))][:len(ks)] / sum(ANSWER[:len(ks)])))) for name, ks in keys.items()}, usage=dict(input_tokens=50, output_tokens=0))
    told = dict(logprobs=dict(content=[dict(top_logprobs=[dict(token=l, logprob=math.log(p)) for l, p in zip(LETTERS, ANSWER)])])) if logprobs and body.get("logprobs") else dict(logprobs=None)
    return dict(choices=[dict(message=dict(role="assistant", content=text), **told)], usage=dict(prompt_tokens=50, completion_tokens=1))


@pytest.fixture(scope="module")
def shop():
    occasions = unseen_market(3)
    return occasions[occasions.sizes >= 3][:12]


def model(stub, reader="chat", **kw):
    kw = dict(pause=.01, timeout=5.) | kw
    return Asked(SystemOne(Wire(stub.url, "m", **kw))) if reader == "systemone" else Asked(LM.from_endpoint(stub.url, "m", **kw))


@pytest.fixture(scope="module")
def right(shop):
    with Stub() as stub: return model(stub).predict(shop).choice


FAULTS = {   # what the first answer to every question is
    "slow": lambda path, body: 1.5,
    "rate limited": lambda path, body: (dict(error="slow down"), 429, {"Retry-After": "0.02"}),
    "server error": lambda path, body: (dict(error="oops"), 503, {}),
    "truncated JSON": lambda path, body: json.dumps(good(path, body)).encode()[:40],
    "not JSON": lambda path, body: b"<html>gateway</html>",
    "wrong schema": lambda path, body: dict(result="A"),
    "wrong types": lambda path, body: dict(choices="A", answers=["A"]),
    "probabilities do not sum": lambda path, body: dict(answers={k: dict(probabilities={o: .9 for o in q["criteria"]}) for k, q in body["questions"].items()}) if "questions" in body else
        dict(choices=[dict(message=dict(content="A"), logprobs=dict(content=[dict(top_logprobs=[dict(token=l, logprob=-.05) for l in "ABC"])]))]),
    "disconnect before": lambda path, body: None,
    "disconnect in the middle": lambda path, body: (good(path, body), 200, {"Cut": "1"}),
}


@pytest.mark.parametrize("reader", ["chat", "systemone"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_can_mend_itself_is_tried_again(shop, right, fault, reader):
    once, lock = set(), threading.Lock()
    def turn(n, path, body):
        key = json.dumps(body)
        with lock:
            if key in once: return good(path, body)
            once.add(key)
        return FAULTS[fault](path, body)
    with Stub(turn) as stub:
        m = model(stub, reader, **(dict(timeout=.5) if fault == "slow" else {}))
        p = m.predict(shop).choice
    assert np.abs(p - right).max() < 1e-9
    assert sum(m.reader.wire.faults.values()) == len(once) and m.tally.unread == 0 and m.tally.asked == len(shop)


def test_dead(shop):
    m = Asked(LM.from_endpoint(f"http://127.0.0.1:{free_port()}/v1", "m", tries=2, pause=.01))
    with pytest.raises(EndpointError, match="no connection, in each of 2 tries; 0 answers are kept"): m.predict(shop)


def test_refused_at_once(shop):
    with Stub(lambda n, path, body: (dict(error=dict(message="no such model")), 404, {})) as stub:
        with pytest.raises(EndpointError, match="refuses m .404.*no such model"): model(stub, at_once=1).predict(shop)
        assert len(stub.bodies) == 1, "what cannot mend itself was tried again"


@pytest.mark.parametrize("reader", ["chat", "systemone"])
def test_dies_in_the_middle_and_nothing_is_asked_twice(shop, right, reader, tmp_path):
    alive = lambda n, path, body: good(path, body) if n <= 5 else None
    with Stub(alive) as stub:
        m = model(stub, reader, tries=2, at_once=1, store=Store(tmp_path))
        with pytest.raises(EndpointError, match="are kept, and the same call continues"): m.predict(shop)
        kept = len(m.reader.wire.kept)
        assert 0 < kept < len(shop)
        stub.turn, before = (lambda n, path, body: good(path, body)), len(stub.bodies)
        again = model(stub, reader, store=Store(tmp_path))             # another process, say
        p = again.predict(shop).choice
        asked = len(stub.bodies) - before
        whole = len({json.dumps(b) for b in stub.bodies})
    assert asked == whole - kept and np.abs(p - right).max() < 1e-9


def test_missing_logprobs_are_noticed_and_answers_drawn(shop):
    draws = lambda n, path, body: good(path, body, logprobs=False, text="A" if body.get("seed", 0) % 4 else "I would rather not say")
    with Stub(draws) as stub:
        m = model(stub, samples=20)
        with pytest.warns(UserWarning, match="sends no logprobs though they were asked for: 20 answers are drawn"): p = m.predict(shop).choice
        seeds = Counter(b.get("seed") for b in stub.bodies)
    J = shop.sizes
    best = np.array([(15 + 1 / j) / 16 for j in J])
    assert np.allclose(p.max(1), best) and m.reader.unread == 5 * len(shop)
    assert seeds.pop(None) == 1 and len(seeds) == 20 * len(shop) and set(seeds.values()) == {1}, "draws of one seed are one draw"
    assert m.tokens(shop) == 20 * 51 * len(shop)


def test_refusals_are_counted_and_never_become_a_choice(shop):
    no = lambda n, path, body: good(path, body) if n > 5 else dict(choices=[dict(message=dict(content="Sorry"), logprobs=dict(content=[dict(top_logprobs=[dict(token="Sorry", logprob=-.01)])]))])
    with Stub(no) as stub:
        m = model(stub, at_once=1)
        with pytest.raises(Unread, match="5 of 12 occasions got no answer that can be read") as e: m.predict(shop)
        assert m.tally.unread == 5 and m.tally.asked == 12 and e.value.positions.tolist() == list(range(5))
        rest = shop[np.setdiff1d(np.arange(len(shop)), e.value.positions)]
        assert np.allclose(m.predict(rest).choice.sum(1), 1)


def test_json_answers_by_a_schema(shop):
    def turn(n, path, body):
        schema = body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"]
        assert len(schema) == options(body)
        return good(path, body, text=['{"choice": "B", "quantity": 2}', '{"choice": "B"', '{"choice": "Z", "quantity": 1}', '{"pick": "B"}'][body["seed"] % 4])
    with Stub(turn) as stub:
        m = model(stub, format="json", samples=8)
        p = m.predict(shop).choice
    assert m.reader.unread == 6 * len(shop) and np.allclose(p.max(1), (2 + 1 / shop.sizes) / 3)


def test_budget_is_a_cap(shop, right):
    with Stub() as stub:
        m = model(stub, budget=1500, at_once=4)
        with pytest.raises(EndpointError, match="the budget of 1,500 tokens is spent"): m.predict(shop)
        assert m.reader.wire.spent <= 1500 and m.reader.wire.held == 0
        m.reader.wire.budget = 10**6
        assert np.abs(m.predict(shop).choice - right).max() < 1e-9
        assert m.reader.wire.spent == 51 * len(stub.bodies) == 51 * len(shop)


def test_rate_limit_of_our_own(shop):
    with Stub() as stub:
        start = time.monotonic()
        model(stub, per_minute=1200, at_once=8).predict(shop)
        assert time.monotonic() - start >= (len(shop) - 1) * .05


def test_cached_and_priced(shop, right, tmp_path):
    with Stub() as stub:
        said, cost = timed(model(stub), shop)
        assert cost.tokens == 51 * len(shop) and cost.money(.001) == pytest.approx(.051 * len(shop))
        first = Cached(model(stub), Store(tmp_path), chunk=4)
        a, asked = first.predict(shop).choice, len(stub.bodies)
        b = Cached(model(stub), Store(tmp_path), chunk=4)
        assert np.array_equal(a, b.predict(shop).choice) and len(stub.bodies) == asked and b.spent.tokens is None and b.cost.tokens == 51 * len(shop)


def test_unlisted_letters_are_bounded(shop):
    with Stub() as stub: p = model(stub).predict(shop[shop.sizes > 3][:3]).choice
    assert (p > 0).sum() >= 3 and np.allclose(p.sum(1), 1)


def test_completions(shop, right):
    turn = lambda n, path, body: dict(choices=[dict(text=" A", logprobs=dict(top_logprobs=[{f" {l}": math.log(p) for l, p in zip(LETTERS, ANSWER)}]))], usage=dict(prompt_tokens=1, completion_tokens=1))
    with Stub(turn) as stub:
        assert np.abs(model(stub, api="completions").predict(shop).choice - right).max() < 1e-9
        assert all("prompt" in b and b["prompt"].endswith("Answer:") for b in stub.bodies)


def test_addresses():
    assert isinstance(served("http://127.0.0.1:1/v1/systemone#a/b"), SystemOne) and isinstance(served("http://127.0.0.1:1/v1#a/b"), Endpoint) and served("http://127.0.0.1:1/v1#a/b").name == "b"
    with pytest.raises(ValueError, match="name the model after a #"): served("http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="chat or completions"): LM.from_endpoint("http://x/v1", "m", api="responses")
