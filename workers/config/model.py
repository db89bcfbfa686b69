"""The base model that a run adapts."""

from typing import Annotated, Literal

from pydantic import Field

from workers.config.base import Spec
from workers.config.credentials import Uri


class ModelSpec(Spec):
    """The frozen base model."""

    path: Annotated[Uri, Field(examples=["Qwen/Qwen2.5-0.5B-Instruct", "models/my-base"])]
    """Hub name, or folder, of a Hugging Face causal language model."""
    revision: str | None = None
    """Hub revision; None takes the default branch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen base. Adapter weights are always float32."""
    quantization: Literal["bnb_nf4", "bnb_int8", "torchao_int8"] | None = None
    """Pack the frozen linears when they are loaded: to 4 bits (bitsandbytes, QLoRA's NF4) or 8
    (bitsandbytes' LLM.int8(), torchao's weight-only int8). Needs the extra `quantized`; dtype is
    then what the rest is kept and computed in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lies; auto takes a GPU if the process sees one."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """How training computes attention. eager keeps all scores of a layer in memory; on a CPU in
    bfloat16 it is still four times as fast for rows of about 70 tokens."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass."""
