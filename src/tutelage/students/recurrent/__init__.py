"""Recurrent depth: a model that thinks in its state, by passing through its core again and again."""

from transformers import AutoConfig, AutoModelForCausalLM

from tutelage.students.recurrent.config import RecurrentDepthConfig
from tutelage.students.recurrent.huginn import convert_huginn, huginn_config, load_huginn_state_dict
from tutelage.students.recurrent.model import RecurrentDepthForCausalLM

AutoConfig.register(RecurrentDepthConfig.model_type, RecurrentDepthConfig, exist_ok=True)
AutoModelForCausalLM.register(RecurrentDepthConfig, RecurrentDepthForCausalLM, exist_ok=True)

__all__ = [
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "convert_huginn",
    "huginn_config",
    "load_huginn_state_dict",
]
