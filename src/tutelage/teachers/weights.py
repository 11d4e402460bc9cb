"""What names a local model in the ledger: a hash of what it is, not of where it lies.

Does not: load models, or know what they were trained on.
"""

from __future__ import annotations

import hashlib
import json

import torch

from tutelage.students.pretrained import Student


def fingerprint(student: Student) -> str:
    """The hash of weights, architecture and vocabulary: what makes two models the same teacher.

    It reads every weight once: about a second per gigabyte."""
    digest = hashlib.sha256()
    config = student.model.config.to_dict()
    # Where it lay and which program wrote it do not make another model.
    plain = {name: config[name] for name in sorted(config.keys() - {"_name_or_path", "transformers_version"})}
    digest.update(json.dumps(plain, sort_keys=True, default=str).encode())
    digest.update(json.dumps(student.tokenizer.get_vocab(), sort_keys=True).encode())
    for name, tensor in sorted(student.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
