"The report in a browser: every picture drawn, nothing asked of a network, nothing to complain about. Skipped without Chromium."
import shutil

import pytest

BROWSER = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH: the report is not looked at")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "The page of a tiny run with nano in it."
    from malles import contenders
    from malles.cli import main
    from test_cli import only
    folder = tmp_path_factory.mktemp("report")
    assert main(f"simulate --out {folder/'tiny'} --customers 40 --categories 2 --trade 0 --weeks 30 --seed 4".split()) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "contenders_for", only(("popularity", "dirichlet", "nano")))
        patch.setattr("os.cpu_count", lambda: 1)  # one process loads torch, not three
        assert main(["run", "--market", str(folder/"tiny"), "--out", str(folder/"out"), "--quiet"]) == 0
    return folder/"out/report.html"


@pytest.fixture(scope="module")
def seen(report):
    "What the browser saw: the page, and everything that it asked for or complained about."
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"])
        page, asked, complaints = browser.new_page(viewport=dict(width=1100, height=900)), [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.goto(report.as_uri())
        yield page, asked, complaints
        browser.close()


def test_only_the_file_itself_is_asked_for(seen, report): assert seen[1] == [report.as_uri()]


def test_no_complaints(seen): assert not seen[2]


def test_every_picture_is_drawn(seen):
    sizes = seen[0].eval_on_selector_all("svg", "all => all.map(s => { const b = s.getBoundingClientRect(); return [b.width, b.height, s.querySelectorAll('path,text').length] })")
    assert len(sizes) >= 3
    assert all(width > 150 and height > 80 and marks > 10 for width, height, marks in sizes), sizes


def test_words_of_the_pictures_stay_inside(seen):
    "No label is cut off at the edge of its picture."
    cut = seen[0].eval_on_selector_all("svg", """all => all.flatMap(s => { const b = s.getBoundingClientRect();
        return [...s.querySelectorAll('text')].filter(t => t.textContent.trim()).filter(t => { const r = t.getBoundingClientRect();
            return r.left < b.left - 2 || r.right > b.right + 2 || r.top < b.top - 2 || r.bottom > b.bottom + 2 }).map(t => t.textContent) })""")
    assert not cut, cut


@pytest.mark.parametrize("width", [1100, 390])
def test_nothing_wider_than_the_window(seen, width):
    page = seen[0]
    page.set_viewport_size(dict(width=width, height=900))
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1


def test_details_open(seen):
    page = seen[0]
    summaries = page.query_selector_all("details > summary")
    assert summaries
    for s in summaries: s.click()
    assert page.eval_on_selector_all("details", "all => all.every(d => d.open && d.getBoundingClientRect().height > 30)")
