"How lm-evaluation-harness scores an answer of malles_bench: as malles does, in nats per choice, over the letters on offer."
import numpy as np


def process_results(doc, results):  # results: per letter (log-likelihood, whether it was the likeliest word)
    "Log-loss and hit rate."
    u = np.array([r[0] for r in results])
    logp = u - np.logaddexp.reduce(u)
    return dict(log_loss=float(-logp[doc["answer"]]), hit_rate=float(logp.argmax() == doc["answer"]))
