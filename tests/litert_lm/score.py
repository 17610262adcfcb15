"""Scores a text with a bundle of LiteRT-LM, in its environment.

    score.py BUNDLE cpu|gpu PROMPT TEXT

Prints the logarithm of the probability of each token of TEXT after PROMPT as JSON.
"""

import json
import sys

import litert_lm
from litert_lm import interfaces


def main() -> None:
    bundle, device, prompt, text = sys.argv[1:]
    backend = {"cpu": interfaces.Backend.CPU, "gpu": interfaces.Backend.GPU}[device]()
    engine = litert_lm.Engine(
        bundle, backend=backend, max_num_tokens=64, cache_dir=":nocache"
    )
    session = engine.create_session()
    session.run_prefill([prompt])
    (scores,) = session.run_text_scoring([text], True).token_scores
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
