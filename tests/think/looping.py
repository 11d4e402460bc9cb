"""Random recurrent-depth models, small enough to build in milliseconds, for tests of decoding."""

import torch

from tinymodel import byte_tokenizer
from tutelage.students.pretrained import Student
from tutelage.students.recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from tutelage.students.template import Template

VOCABULARY = 40


def loop_model(vocabulary=VOCABULARY, seed=0, scale=2.0, **more):
    """Weights are larger than those of a new model, so that tokens settle at different steps."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": vocabulary,
        "mean_recurrence": 3,
        "max_recurrence": 12,
        "max_position_embeddings": 256,
        "norm_after_core": "every",
        "adapter_init": "identity",
        "tie_word_embeddings": False,
    }
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**{**sizes, **more})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1 or weight.shape[0] in (2, 4):  # norms, biases
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.mul_(scale)
    return model


def loop_student(seed=0, closes=1.0, **more):
    """A student of such a model; `closes` as in `tiny_student`."""
    tokenizer = byte_tokenizer()
    model = loop_model(len(tokenizer), seed, **more)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("</think>")] *= closes
    return Student(model, tokenizer, Template(), f"loops-{seed}")
