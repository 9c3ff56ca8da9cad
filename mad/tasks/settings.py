"""The MAD protocol's settings: for each task its baseline (the defaults of its options), and one change at a time.

Poli et al. 2024 (arXiv 2403.17844). `num_train`, the number of training sequences, is an option of training.
"""

from typing import Any

from mad.registry import unknown

FEWER = [6400, 3200, 1600, 800]
RECALL = {"vocab_size": [32, 64, 128], "seq_len": [256, 512, 1024], "num_train": FEWER}

CHANGES: dict[str, dict[str, list[Any]]] = {
    "in_context_recall": RECALL,
    "fuzzy_in_context_recall": RECALL,
    "noisy_in_context_recall": RECALL | {"vocab_size": [48, 80, 144], "frac_noise": [0.4, 0.6, 0.8]},
    "selective_copying": {
        "vocab_size": [32, 64, 128],
        "seq_len": [512, 1024],
        "num_train": FEWER,
        "tokens_to_copy": [32, 64, 96],
    },
    "compression": {"vocab_size": [32, 64, 128], "seq_len": [64, 128, 256], "num_train": FEWER},
    "memorization": {"vocab_size": [512, 1024, 2048, 4096, 8192]},
}

PROTOCOLS = {
    "mad": [
        (task, options)
        for task, changes in CHANGES.items()
        for options in [{}, *({option: value} for option, values in changes.items() for value in values)]
    ]
}


def settings(protocol: str = "mad") -> list[tuple[str, dict[str, Any]]]:
    """(task name, options) of every setting of a protocol; options may include `num_train`.

    Raises:
        ValueError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    return [(task, dict(options)) for task, options in PROTOCOLS[protocol]]
