"""The sizes of a model and what changes its recurrence, as data. Knows no torch, so that settings can be read without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tidegate.documents import Damaged, check, shown
from tidegate.errors import RunError, nearest
from tidegate.model.cells import CELLS


@dataclass(frozen=True)
class CoreOptions:
    """What changes the recurrence of a core, or how its weights begin: arguments of `tidegate.GRU`, see there.

    A cell's row in `tidegate.model.cells` says which of them it knows.
    """

    reset: Literal["after", "before"] = "after"
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    learn_initial_state: bool = False
    init: Literal["torch", "orthogonal"] = "torch"
    update_bias: float | tuple[float, float] | None = None
    checkpoint_every: int = 0

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name.

        >>> CoreOptions(zoneout=0.1).changed()
        {'zoneout': 0.1}
        """
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a SequenceModel, as they stand in the header of model.safetensors.

    number_width: numeric inputs with their masks; vocabularies: entries of each token column, the unknown one
    included; embedding_dims: one a token column; outputs: scores a predicted value; horizon: values predicted
    ahead, 0 for the step itself; residual: for a forecast, the numeric input that each output starts from.
    """

    number_width: int
    vocabularies: tuple[int, ...]
    embedding_dims: tuple[int, ...]
    cell: str
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dropout: float
    per: Literal["step", "sequence"]
    pooling: Literal["last", "mean", "max", "last+max+mean"]
    horizon: int
    outputs: int
    residual: tuple[int, ...] | None = None
    core: CoreOptions = CoreOptions()

    @property
    def input_width(self) -> int:
        """Features of a step as the core reads it, E."""
        return self.number_width + sum(self.embedding_dims)

    @property
    def directions(self) -> int:
        """D: 2 where the core reads both ways, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def states(self) -> int:
        """layers·D, the first axis of a state."""
        return self.num_layers * self.directions

    @property
    def output_width(self) -> int:
        """Features of the core's output, D·H; without a core those of its input."""
        return self.input_width if self.cell == "none" else self.directions * self.hidden_size

    @property
    def poolings(self) -> tuple[str, ...]:
        """What the head reads of a sequence, side by side; nothing of the kind with per="step"."""
        return tuple(self.pooling.split("+")) if self.per == "sequence" else ()

    @property
    def read_width(self) -> int:
        """Features that the head reads: those of the output, of each pooling."""
        return self.output_width * max(1, len(self.poolings))

    @property
    def ahead(self) -> int:
        """K: how many values are predicted at once, 1 without a horizon."""
        return max(self.horizon, 1)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file; the core's options are left out where all are the defaults, as they were before there were any."""
        values = asdict(self)
        changed = self.core.changed()
        return {k: v for k, v in values.items() if k != "core"} | ({"core": changed} if changed else {})

    @staticmethod
    def from_dict(values: Mapping[str, Any], name: str = "The model's header") -> ModelSpec:
        """What `to_dict` gave. Raises RunError for a field that this version doesn't know."""
        if not isinstance(values, dict) or not isinstance(values.get("core", {}), dict):
            raise RunError(f"{name} is damaged (it has no sizes of a model).")
        values = dict(values)
        core = values.pop("core", {})
        for given, kind, what in ((values, ModelSpec, ""), (core, CoreOptions, "core.")):
            known = [f.name for f in fields(kind)]
            for key in given:
                if key not in known:
                    raise RunError(
                        f"{name} has the unknown field {what + key!r}.{nearest(key, known)} A later version of Tidegate may have written "
                        "it: update this one."
                    )
        try:
            check(ModelSpec, values | {"core": core})
            spec = ModelSpec(**_tuples(values), core=CoreOptions(**_tuples(core)))
            spec._check()
            return spec
        except (Damaged, TypeError) as error:
            raise RunError(f"{name} is damaged ({error}).") from error

    def _check(self) -> None:
        """Raises Damaged for sizes that no model has."""
        for good, what in (
            (self.cell in CELLS, f"cell={shown(self.cell)}"),
            (
                min(self.hidden_size, self.num_layers, self.outputs, *self.embedding_dims, *self.vocabularies) >= 1,
                "a size below 1",
            ),
            (self.number_width >= 0 and self.horizon >= 0 and self.input_width >= 1, "a size below 0"),
            (len(self.vocabularies) == len(self.embedding_dims), "vocabularies and embedding_dims differ in length"),
            (0 <= self.dropout < 1, f"dropout={self.dropout}"),
            (
                self.residual is None
                or (len(self.residual) == self.outputs and all(0 <= k < self.number_width for k in self.residual)),
                f"residual={shown(self.residual)}",
            ),
        ):
            if not good:
                raise Damaged(what)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
