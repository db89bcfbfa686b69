"""The shape of an adapter, as a specification."""

import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from workers.config.base import Fraction, Listed, Size
from workers.config.routing import RoutingSpec

ALL_LINEAR = "all-linear"


def _pattern(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
    return value


Token: TypeAlias = Annotated[int, Field(ge=0, strict=True)] | str
"""By its id, or as the base's tokenizer writes it."""
Named: TypeAlias = Annotated[str | tuple[str, ...], AfterValidator(_pattern)]
"""Names, or ends of paths; or one regular expression for whole paths."""


class AdapterSpec(RoutingSpec):
    """The shape of a routed mixture of LoRA experts."""

    rank: Size = 8
    """Rank of every expert, and of the attention's plain LoRA."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with use_rslora)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732)."""
    goat_lr_ratio: Annotated[float, Field(gt=0)] | None = None
    """Scale each linear's update by sqrt(3 * goat_lr_ratio * in_features / rank), whatever alpha
    is: a first step of gradient descent is then, in expectation, that of full fine-tuning at this
    many times the learning rate (GOAT, arXiv 2502.16894). None: by alpha."""
    use_dora: bool = False
    """Also train the magnitude of every expert's output features (DoRA, arXiv 2402.09353)."""
    shared_a: bool = False
    """All experts of a place share one A matrix (HydraLoRA, arXiv 2404.19245)."""
    dropout: Fraction = 0.05
    """Dropout on the input of every A matrix, in training only."""
    target_modules: Named = ALL_LINEAR
    """Names of the linears to adapt, or ends of their paths, such as mlp.up_proj; all-linear takes
    every one inside the decoder's layers. A text is a regular expression that a linear's whole path
    must match, such as layers.0.self_attn.q_proj: `.*\\.[01]\\.mlp\\..*`."""
    exclude_modules: Named = ()
    """The same for what target_modules leave out again."""
    target_parameters: Named = ()
    """The same for weights that a mixture-of-experts base stacks, one matrix for each of its
    experts, such as [mlp.experts.gate_up_proj, mlp.experts.down_proj]: each of its experts gets a
    LoRA of its own, and the base's router chooses. Needs num_experts: 1. target_modules may then be
    empty."""
    train_also: Listed[str] = ()
    """Weights of the base that the adapter trains whole copies of, beside its experts: of the
    embedding and the output head, by what the base calls them, as in [embed_tokens, lm_head]. Where
    the base ties them, name both. Each copy is as large as the base's own, in float32."""
    train_tokens: Listed[Token] = ()
    """Tokens whose rows of the embedding and of the output head are trained, and no others: new
    ones, as in ["<tool>", "</tool>"], or ids. The base's tokenizer and its embedding must have them
    (docs/adapters.md). PEFT's trainable_token_indices."""
    train_tokens_of: Listed[str] = ()
    """Of which weights those rows are, by what the base calls them: [embed_tokens] leaves the head
    as it is. Left out: of both. Of a base that ties them they are the same rows."""

    def scale(self, in_features: int) -> float:
        """The factor s of the low-rank update of a linear with so many inputs.

        GOAT's: where B is zero, W = W0 + s B A moves by s^2 A^T A times the full gradient, and a
        Kaiming-uniform(sqrt 5) A has E[A^T A] = rank / (3 in_features).
        """
        if self.goat_lr_ratio is not None:
            return math.sqrt(3 * self.goat_lr_ratio * in_features / self.rank)
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target_parameters:
            self._check_stacked()
        elif not self.target_modules:
            raise ValueError("target_modules is empty; name at least one linear, or all-linear")
        if self.goat_lr_ratio is not None and self.use_rslora:
            raise ValueError("goat_lr_ratio and use_rslora are two scales; set one of them")
        self._check_tokens()
        return self

    def _check_tokens(self) -> None:
        tokens = self.train_tokens
        if self.train_tokens_of and not tokens:
            raise ValueError("train_tokens_of says where train_tokens are trained, which is empty")
        if tokens and self.train_also:
            raise ValueError(
                "train_also trains whole weights and train_tokens single rows; leave one of them"
            )
        if twice := [one for at, one in enumerate(tokens) if one in tokens[:at]]:
            raise ValueError(f"train_tokens has {twice[0]!r} twice")

    def _check_stacked(self) -> None:
        """What an update of the base's own experts cannot be."""
        if self.is_routed:
            raise ValueError(
                f"num_experts is {self.num_experts}, but must be 1 with target_parameters: the "
                "experts are the base's own, and so is the router"
            )
        for name in ("use_dora", "shared_a"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} must be false with target_parameters, whose updates are plain LoRA, "
                    "one for each of the base's experts"
                )

    @property
    def own_weights(self) -> Literal["train_also", "train_tokens"] | None:
        """The field by which it has numbers of the embedding or the head, if it has any."""
        if self.train_also:
            return "train_also"
        return "train_tokens" if self.train_tokens else None

    def may_train_tokens_of(self, other: Self) -> bool:
        """Whether both may train rows of the same tokens, one by their names, the other by ids."""
        pairs = list(zip(self.train_tokens, other.train_tokens, strict=False))
        alike = all(mine == theirs or type(mine) is not type(theirs) for mine, theirs in pairs)
        return alike and len(self.train_tokens) == len(other.train_tokens)

    @property
    def names_linears(self) -> bool:
        """Whether target_modules says by itself which linears those are, of any base."""
        return not isinstance(self.target_modules, str) and not self.exclude_modules

    def adapts(self, path: str) -> bool:
        """Whether it adapts the linear at a canonical path, such as `layers.0.mlp.up_proj`."""
        named = self.target_modules == ALL_LINEAR or is_named(path, self.target_modules)
        return named and not is_named(path, self.exclude_modules)

    def adapts_parameter(self, path: str) -> bool:
        """Whether it adapts the stacked weight at a canonical path, such as
        `layers.0.mlp.experts.down_proj`."""
        return is_named(path, self.target_parameters)


def is_named(path: str, names: str | Iterable[str]) -> bool:
    """Whether any of these target modules' names is the end of a linear's path, or all of it; of a
    pattern whether it matches all of it."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(f".{path}".endswith(f".{name}") for name in names)
