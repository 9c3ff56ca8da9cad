"""The settings of a protocol: for each task a baseline, and one change at a time with all else at the baseline."""

from typing import Any

from mad.registry import unknown

NUM_TRAIN = [6_400, 3_200, 1_600, 800]

# Poli et al. 2024 (arXiv 2403.17844): task -> (baseline, changes). `num_train` is an option of training, not of a task.
MAD: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "in_context_recall": (
        {"vocab_size": 16, "seq_len": 128, "num_train": 12_800},
        {"vocab_size": [32, 64, 128], "seq_len": [256, 512, 1024], "num_train": NUM_TRAIN},
    ),
    "fuzzy_in_context_recall": (
        {"vocab_size": 16, "seq_len": 128, "k_motif": 3, "v_motif": 3, "num_train": 12_800},
        {"vocab_size": [32, 64, 128], "seq_len": [256, 512, 1024], "num_train": NUM_TRAIN},
    ),
    "noisy_in_context_recall": (
        {"vocab_size": 32, "seq_len": 128, "noise_vocab": 16, "frac_noise": 0.2, "num_train": 12_800},
        {
            "vocab_size": [48, 80, 144],
            "seq_len": [256, 512, 1024],
            "num_train": NUM_TRAIN,
            "frac_noise": [0.4, 0.6, 0.8],
        },
    ),
    "selective_copying": (
        {"vocab_size": 16, "seq_len": 256, "tokens_to_copy": 16, "num_train": 12_800},
        {"vocab_size": [32, 64, 128], "seq_len": [512, 1024], "num_train": NUM_TRAIN, "tokens_to_copy": [32, 64, 96]},
    ),
    "compression": (
        {"vocab_size": 16, "seq_len": 32, "num_train": 12_800},
        {"vocab_size": [32, 64, 128], "seq_len": [64, 128, 256], "num_train": NUM_TRAIN},
    ),
    "memorization": (
        {"vocab_size": 256, "seq_len": 32, "num_train": 256},
        {"vocab_size": [512, 1024, 2048, 4096, 8192]},
    ),
}

PROTOCOLS = {"mad": MAD}


def settings(protocol: str = "mad") -> list[tuple[str, dict[str, Any]]]:
    """(task name, options) of every setting, each task's baseline first; `num_train` is among the options.

    Raises:
        ValueError: the protocol is unknown.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    found = []
    for task, (baseline, changes) in PROTOCOLS[protocol].items():
        found.append((task, dict(baseline)))
        found += [(task, {**baseline, option: value}) for option, values in changes.items() for value in values]
    return found
