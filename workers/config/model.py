"""The base model that a run adapts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.config.attention import ATTENTION, Attention, is_plain
from workers.config.base import Spec
from workers.config.credentials import Uri


class ModelSpec(Spec):
    """The frozen base model."""

    path: Annotated[Uri, Field(examples=["Qwen/Qwen2.5-0.5B-Instruct", "models/my-base"])]
    """Hub name, or folder, of a Hugging Face causal language model."""
    revision: str | None = None
    """Hub revision; None takes the default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen base; auto is bfloat16 where the worker's GPU computes it, float32
    elsewhere. The first worker of a study decides for all, and its versions are served as they were
    trained. Adapter weights are always float32."""
    quantization: Literal["bnb_nf4", "bnb_int8", "torchao_int8"] | None = None
    """Pack the frozen linears when they are loaded: to 4 bits (bitsandbytes, QLoRA's NF4) or 8
    (bitsandbytes' LLM.int8(), torchao's weight-only int8). Needs the extra `quantized`; dtype is
    then what the rest is kept and computed in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lies; auto takes a GPU if the process sees one."""
    attention: Attention = "auto"
    """How training computes attention. sdpa: torch's own; eager keeps all scores of a layer in
    memory (on a CPU in bfloat16 it is still four times as fast for rows of about 70 tokens);
    flash_attention_2 and _3: packages of their own, in bfloat16 on a GPU; flex_attention: torch's
    compiled one, on a GPU. auto takes FlashAttention where it is installed and runs, else sdpa, and
    eager for a family without it; a run says which. An endpoint computes attention its own way."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass."""
    fused_norms: bool = True
    """On a GPU, compute RMS norms by torch's fused kernels: the same to the rounding, in a tenth of
    the bytes. false leaves them as transformers writes them, and so does a base that lies in shards
    (fsdp2, or deepspeed with zero_stage 3). A run says what it did."""
    compile: bool = False
    """Train on decoder layers that torch.compile has compiled, once for all lengths of rows.
    Evaluation stays as it is. Where torch cannot compile (no C++ compiler, an old driver) a warning
    says so and the run goes on without. On a CPU it was slower (docs/performance.md), on a GPU
    nobody has measured it. Dropout then draws other numbers. Not with quantization,
    activation_checkpointing, data.packing, ep_size, another strategy than ddp, or attention of
    another package."""

    @property
    def settled_dtype(self) -> Literal["float32", "bfloat16"] | None:
        """The precision, as far as the specification says it; else a worker's device does."""
        if self.dtype == "auto":
            return "float32" if self.device == "cpu" else None
        return self.dtype

    @model_validator(mode="after")
    def _check(self) -> Self:
        kind = ATTENTION.get(self.attention)
        if kind and kind.half and self.dtype == "float32":
            raise ValueError(
                f"attention is {self.attention}, which computes in half precision, but dtype is "
                f"{self.dtype}; it must be bfloat16"
            )
        if kind and kind.capability and self.device == "cpu":
            raise ValueError(
                f"attention is {self.attention}, which needs a GPU, but device is cpu; sdpa and "
                "eager do not"
            )
        if self.compile:
            self._check_compiled()
        return self

    def _check_compiled(self) -> None:
        """What has not been shown to give the same compiled is refused."""
        if not is_plain(self.attention):
            raise ValueError(
                f"attention is {self.attention}, but compile is true; it must be auto, sdpa or "
                "eager"
            )
        if self.quantization:
            raise ValueError(
                f"quantization is {self.quantization}, but compile is true; one of them must go"
            )
        if self.activation_checkpointing:
            raise ValueError(
                "activation_checkpointing is true, but so is compile; one of them must be false"
            )
