"""The frozen base model: found, checked and loaded.

Weights come from safetensors alone, and code from a model's repository never runs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from workers.adapter.model_files import weight_files
from workers.config.base import InputError
from workers.config.model import ModelSpec
from workers.config.parallel import ParallelSpec
from workers.models.attention_choice import AttentionChoice, attention_choice
from workers.models.device import device_of, settled
from workers.models.fused_norms import fuse_norms, wants_fused_norms
from workers.models.output_head import OutputHead, output_head
from workers.models.padding import needs_mask
from workers.models.quantization import check_quantised, make_trainable, quantising
from workers.models.sharded_loading import reading
from workers.models.vocabulary import fit_vocabulary


@dataclass(frozen=True)
class Base:
    """A base model, ready to take adapters: frozen, in eval mode, on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    attention: AttentionChoice | None = None
    """How it computes attention; None of a model that was not loaded here."""
    norms: str | None = None
    """What was done to its norms, if anything."""
    _heads: dict[nn.Module | None, OutputHead | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Of the module that makes logits now, what was found of it."""

    @cached_property
    def needs_mask(self) -> bool:
        """Whether it must be told what the padding on the right of its rows is."""
        return needs_mask(self.model.config)

    @property
    def head(self) -> OutputHead | None:
        """What makes logits of hidden states; None where that is the whole model's business."""
        module = self.model.get_output_embeddings()
        if module not in self._heads:  # an adapter that trains the head puts another one there
            self._heads.clear()
            self._heads[module] = output_head(self.model)
        return self._heads[module]


def load_base(spec: ModelSpec, parallel: ParallelSpec | None = None) -> Base:
    """Load the model and its tokenizer; every parameter has requires_grad False. Where `parallel`
    wants the base in shards, the workers of the process group load it together.

    Raises InputError where it cannot be found or read, is no causal language model, lacks
    weights, or wants a device or a package that is not there.
    """
    spec = settled(spec)
    parallel = parallel or ParallelSpec()
    device, options = device_of(spec), loading_options(spec)
    config = _checked_config(spec, options)
    tokenizer = _tokenizer(spec, config, options)
    attention = attention_choice(spec, config, device)
    with reading(spec, parallel, device) as placing, readable(spec):
        model, report = AutoModelForCausalLM.from_pretrained(
            spec.path,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=attention.name,
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **quantising(spec),
            **placing,
        )
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers, and train on.
        raise InputError(
            f"model.path: {spec.path}: its files lack {len(missing)} weights, first {missing[0]}"
        )
    _forget_habits(model)
    make_trainable(model)
    model.requires_grad_(False).eval().to(device)
    if spec.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    norms = fuse_norms(model) if wants_fused_norms(spec, parallel, device) else None
    return Base(model, tokenizer, device, attention, norms)


def check_base(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Check that the model can be read and is a causal language model, without its weights.

    Returns its tokenizer, with a pad token apart from the end of text where there is one.
    """
    options = loading_options(spec)
    return _tokenizer(spec, _checked_config(spec, options), options)


def _tokenizer(
    spec: ModelSpec, config: PretrainedConfig, options: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    with readable(spec):
        tokenizer = AutoTokenizer.from_pretrained(spec.path, **options)
    fit_vocabulary(tokenizer, config, f"model.path: {spec.path}")
    return tokenizer


def check_weights_alone(spec: ModelSpec) -> None:
    """`check_base` for what asks for no tokenizer, and so may lack one."""
    _checked_config(spec, loading_options(spec))


def loading_options(spec: ModelSpec) -> dict[str, Any]:
    """Options of every `from_pretrained`.

    Asks the hub once whether it answers; if not, only its cache is read, since its client would
    try for half a minute at each file.
    """
    local = Path(spec.path).is_dir()
    if not local:
        try:
            HfApi().repo_info(spec.path, revision=spec.revision, timeout=10)
        except HfHubHTTPError:
            pass  # it answers; what is wrong shows when a file is read
        except Exception:  # whatever keeps us from it: no network, offline mode, no valid name
            local = True
    return {
        "revision": spec.revision or "main",
        "local_files_only": local,
        "trust_remote_code": False,
    }


@contextmanager
def readable(spec: ModelSpec) -> Iterator[None]:
    """Turn the many ways in which reading a model fails into one clear line."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        where = f"model.path: {spec.path}"
        if Path(spec.path).is_dir() or isinstance(error, ImportError):
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{where}: cannot be read as a causal language model: {reason}"
            ) from error
        revision = f" (revision {spec.revision})" if spec.revision else ""
        raise InputError(
            f"{where}: no such folder, and the Hugging Face hub has no such model{revision}, "
            "keeps it from us, or cannot be reached from here"
        ) from error


def _checked_config(spec: ModelSpec, options: Mapping[str, Any]) -> PretrainedConfig:
    _check_bare(spec, options)
    with readable(spec):
        config = AutoConfig.from_pretrained(spec.path, **options)
    _check_causal(spec, config)
    check_quantised(spec, config)
    _check_weights(spec)
    return config


def _check_causal(spec: ModelSpec, config: PretrainedConfig) -> None:
    """Refuse encoders, encoder-decoders, and what transformers knows no causal model for."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING
    fits = type(config) in known and not config.is_encoder_decoder
    # BERT and its kin have a causal class too; what the files hold says which one is meant.
    if fits and config.architectures:
        fits = any(
            name.endswith(("ForCausalLM", "LMHeadModel")) or name == known[type(config)].__name__
            for name in config.architectures
        )
    if not fits:
        kind = ", ".join(config.architectures or [config.model_type])
        raise InputError(f"model.path: {spec.path}: is no causal language model, but {kind}")


def _check_bare(spec: ModelSpec, options: Mapping[str, Any]) -> None:
    """Refuse a model that an adapter lies beside: transformers would put it on by itself."""
    place = {name: options[name] for name in ("revision", "local_files_only")}
    with readable(spec):
        found = find_adapter_config_file(spec.path, **place)
    if found is not None:
        raise InputError(
            f"model.path: {spec.path}: holds an adapter ({Path(found).name}), which would silently "
            "be part of the base; name a base alone"
        )


def _check_weights(spec: ModelSpec) -> None:
    folder = Path(spec.path)
    if folder.is_dir() and not weight_files(folder):
        raise InputError(
            f"model.path: {spec.path}: holds no *.safetensors file (other formats are not read)"
        )


def _forget_habits(model: PreTrainedModel) -> None:
    """Keep only the special tokens of the model's own way to generate.

    `generate` would take a repetition penalty and the like from the model's files even where it is
    given a configuration, and trials would be compared on answers that nobody is served.
    """
    habits = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=habits.bos_token_id, eos_token_id=habits.eos_token_id
    )
