"Tiny models that know nothing, with a tokenizer and a chat template, and a server for them: made by the tests, in seconds."
import contextlib, os, socket, subprocess, sys, time, urllib.request
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chat_tokenizer(texts):
    "A byte-level tokenizer of these texts, letters and template included."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(list(texts), trainers.BpeTrainer(vocab_size=600, special_tokens=["<|im_start|>", "<|im_end|>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|im_end|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", "<eos>"], chat_template=TEMPLATE, model_max_length=8192)


def tiny(kind, tokenizer, folder, scale=20.):
    "A model of random weights in a folder; its head is scaled up so that its answers differ, and in its vocabulary there is room for the marks of decision models."
    import torch
    import transformers as t
    torch.manual_seed(0)
    size = dict(vocab_size=len(tokenizer) + 2, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8192)
    if kind == "letters": model = t.PhiForCausalLM(t.PhiConfig(**size))   # says hardly anything but A, B, C or D
    elif kind == "qwen3": model = t.Qwen3ForCausalLM(t.Qwen3Config(head_dim=16, tie_word_embeddings=False, **size))
    elif kind == "llama": model = t.LlamaForCausalLM(t.LlamaConfig(tie_word_embeddings=False, **size))
    elif kind == "mistral": model = t.MistralForCausalLM(t.MistralConfig(tie_word_embeddings=False, sliding_window=16, **size))
    elif kind == "decision":
        model = t.AutoModelForDecision.from_config(t.JevConfig(hidden_size=32, num_verbalizers=40, text_config=t.Qwen2Config(**size)))
    with torch.no_grad(): (model.proj if kind == "decision" else model.lm_head).weight.mul_(scale)
    if kind == "letters":
        with torch.no_grad(): model.lm_head.bias[tokenizer.convert_tokens_to_ids(list("ABCD"))] = 20.
    if kind != "decision": model.generation_config.do_sample = True
    model.save_pretrained(folder); tokenizer.save_pretrained(folder)
    return Path(folder)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def served(folder, cache):
    "`transformers serve FOLDER` on this machine, yields http://127.0.0.1:port/v1."
    port = free_port()
    Path(cache).mkdir(exist_ok=True)
    env = dict(os.environ, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    server = subprocess.Popen([Path(sys.executable).parent/"transformers", "serve", str(folder), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            if server.poll() is not None: raise RuntimeError("transformers serve ended by itself")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError: time.sleep(.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)
