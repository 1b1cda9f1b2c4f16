"""Config dataclasses whose fields say everything about themselves: default, help, range, what a resume may change.

    lr: float = setting(5e-4, "learning rate", more_than=0)
    schedule: Literal["constant", "linear"] = setting("linear", "how the rate falls")
    scale: ScaleConfig = section(ScaleConfig, on_resume="any value")

The command line, the printed YAML, the reference pages, the checks before a job and the comparison when it resumes all
read these fields. A plain dataclass field works too: it has no help and may have any value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from pipelines.errors import PipelineError

T = TypeVar("T")
OnResume: TypeAlias = Literal["same value", "same content", "any value", "same value, or extend=true"]
"""What a setting must be when a job goes on with what it began: the same; another path, say, to the same content (which
is compared, by fingerprints); anything; or the same unless the user says extend=true, which is recorded."""
PlaceKind: TypeAlias = Literal[
    "no", "location", "locations", "input", "checkpoint", "policy", "reconstructor", "encoder"
]
"""Whether a text setting says where something is: a path or URL; several with commas; videos, in any of the ways that
pipelines.corpus.inputs knows; a path or a hub id; or a network of this kind, by any name that pipelines.networks.find
knows."""


class Limits(NamedTuple):
    """The numbers that a setting may have; None = no limit on that side. With any limit, a number must be finite."""

    at_least: float | None = None
    more_than: float | None = None
    at_most: float | None = None
    less_than: float | None = None

    def allow(self, value: float) -> bool:
        """Whether a number is within the limits; NaN never is."""
        return self == Limits() or (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
            and (self.at_most is None or value <= self.at_most)
            and (self.less_than is None or value < self.less_than)
        )

    def words(self, kind: type) -> str:
        """What follows "must be" in a message: "at least 1", "a positive number", "more than 0, and at most 1"."""
        if self == Limits(more_than=0):
            return "a positive number"
        at_least = f"at least {self.at_least}" if kind is int else f"{self.at_least} or more"
        named = (
            (self.at_least, at_least),
            (self.more_than, f"more than {self.more_than}"),
            (self.at_most, f"at most {self.at_most}"),
            (self.less_than, f"less than {self.less_than}"),
        )
        return ", and ".join(text for limit, text in named if limit is not None)


@dataclass(frozen=True)
class Setting:
    """One key of a config.

    Attributes:
        name: dotted, as the command line has it.
        type: of its value: bool, int, float or str.
        value: in the config that was walked; of `schema()` the default.
        optional: whether it may be None, written as null or as nothing.
        choices: the words it may be, of a Literal field; () = any.
        required: whether it must be given.
        on_resume: what it must be when the job goes on with what it began.
        place: whether it says where something is; such a path means the same in every process of a job.
    """

    name: str
    type: type
    value: Any
    help: str = ""
    optional: bool = False
    choices: tuple[str, ...] = ()
    limits: Limits = Limits()
    required: bool = False
    on_resume: OnResume = "same value"
    place: PlaceKind = "no"

    @property
    def allowed(self) -> str:
        """The values it may have, in words; "" = any."""
        words = [word for word in self.choices if word]
        return f"one of {', '.join(words)}" if words else self.limits.words(self.type)


def setting(
    default: T,
    help: str,
    *,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
    less_than: float | None = None,
    required: bool = False,
    on_resume: OnResume | None = None,
    place: PlaceKind = "no",
) -> T:
    """A dataclass field that holds one value; its arguments are those of `Setting` and `Limits`.

    The words that a text may be are in its type: Literal["cpu", "cuda"]. on_resume: None = as of the section.
    """
    limits = Limits(at_least, more_than, at_most, less_than)
    metadata = {"help": help, "limits": limits, "required": required, "on_resume": on_resume, "place": place}
    return field(default=default, metadata=metadata)


def section(make: Callable[[], T], *, on_resume: OnResume | None = None) -> T:
    """A dataclass field that holds a config of its own, with keys `field.key`. on_resume: of keys that do not say."""
    return field(default_factory=make, metadata={"on_resume": on_resume})


def settings_of(config: Any, prefix: str = "") -> list[Setting]:
    """Every key of a config, with its value there. Keys that must be given come first, else the order of fields.

    prefix: before each name, where `config` is a part of another: "clip.".
    """
    return list(_settings(config, prefix, "same value"))


def _settings(config: Any, prefix: str, on_resume: OnResume) -> Iterator[Setting]:
    hints = _hints(config.__class__)
    for each in ordered_fields(config):
        value, resume = getattr(config, each.name), each.metadata.get("on_resume") or on_resume
        if is_dataclass(value):
            yield from _settings(value, f"{prefix}{each.name}.", resume)
            continue
        kinds = [kind for kind in get_args(hints[each.name]) if kind is not type(None)]
        optional = len(kinds) < len(get_args(hints[each.name]))
        kind = kinds[0] if optional else hints[each.name]
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        yield Setting(
            name=prefix + each.name,
            type=str if choices else kind,
            value=value,
            help=each.metadata.get("help", ""),
            optional=optional,
            choices=choices,
            limits=each.metadata.get("limits", Limits()),
            required=each.metadata.get("required", False),
            on_resume=resume,
            place=each.metadata.get("place", "no"),
        )


@cache
def _hints(schema: type) -> dict[str, Any]:
    """The types of its fields. Every one of them is compiled out of a text, and a command asks several times."""
    return get_type_hints(schema)


def ordered_fields(config: Any) -> list[Field[Any]]:
    """The fields of a config, those that must be given first."""
    return sorted(fields(config), key=lambda each: not each.metadata.get("required", False))


def check(config: Any, prefix: str = "") -> None:
    """Raise PipelineError, in one line, for the first key that is missing, no valid word or out of range.

    A config's `usage` (a ClassVar) is the command that the message about a missing key shows.
    """
    for key in settings_of(config, prefix):
        if key.required and not key.value:
            usage = getattr(config, "usage", "")
            raise PipelineError(f"{key.name}= is missing: {usage}" if usage else f"{key.name}= is missing")
        if key.value is None and key.optional:
            continue
        wrong_word = key.choices and key.value not in key.choices
        if wrong_word or not key.limits.allow(key.value):
            raise PipelineError(f"{key.name}={key.value}: must be {key.allowed}")
