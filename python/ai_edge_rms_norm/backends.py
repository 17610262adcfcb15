"""Which runtime loads and runs which encoding, and how: one table, measured.

The matrix of docs/backends.md is made from it, `arn.check` reports it, and the tests of
//tests/backends run every cell that they can. No import but the standard library's.
"""

import dataclasses
import enum
from collections.abc import Mapping

__all__ = [
    "ENCODINGS",
    "MEASURED",
    "PLAIN",
    "RUNTIMES",
    "Outcome",
    "Runtime",
    "Support",
    "encoding_for",
    "matrix",
    "support",
]

# The day of the measurements.
MEASURED = "2026-11-25"
# Decomposed RMSNorm in another form than the encoding `decomposed`: the mean of the
# squares of x itself, as converters write it.
PLAIN = "plain"
# The values of tflite.encoding.Encoding, and PLAIN.
ENCODINGS = (
    "stablehlo_custom_call",
    "custom",
    "ml_drift",
    "composite",
    "decomposed",
    PLAIN,
)


class Outcome(str, enum.Enum):
    """How a runtime treats a norm."""

    FUSED = "fused"
    """One kernel; the right result."""
    DECOMPOSED = "decomposed"
    """The right result, operator by operator."""
    SILENT_ZEROS = "silent zeros"
    """Decomposed, in float16: from one |x| of about 256 on the row becomes 0."""
    WRONG = "wrong numbers"
    """Runs without an exception; the output is not the norm's."""
    UNSUPPORTED = "not at all"
    """An exception when the model is loaded or run."""
    CRASH = "crash"
    """The process, or in a browser the runtime, ends."""
    UNKNOWN = "not measured"
    """Nobody has tried."""

    @property
    def is_right(self) -> bool:
        """Whether the result is that of RMSNorm."""
        return self in (Outcome.FUSED, Outcome.DECOMPOSED)


@dataclasses.dataclass(frozen=True)
class Support:
    """How a runtime treats an encoding.

    Attributes:
      outcome: How the runtime treats the norm.
      note: A remark for users, possibly empty.
    """

    outcome: Outcome
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A runtime in the version that was measured.

    Attributes:
      title: Its name for people.
      version: The version that was measured.
      float16: Whether it computes in float16, also on a float32 model.
      encodings: How it treats each of ENCODINGS.
      weightless_composite: The same for a composite without a weight, which other
        converters write; the package always gives a composite a weight.
    """

    title: str
    version: str
    float16: bool
    encodings: Mapping[str, Support]
    weightless_composite: Support


_FUSED = Support(Outcome.FUSED)
_DECOMPOSED = Support(Outcome.DECOMPOSED)
_CRASH = Support(Outcome.CRASH)
_UNKNOWN = Support(Outcome.UNKNOWN)
_WRONG = Support(Outcome.WRONG, "an error in the console only")
_NO_KERNEL = Support(Outcome.UNSUPPORTED, "no runtime has a kernel for builtin 173")
_NO_OPERATOR = Support(Outcome.UNSUPPORTED, "the operator is not known")
_TOO_NEW = Support(Outcome.UNSUPPORTED, "the schema is older than the operator")
_OPTION = Support(Outcome.DECOMPOSED, "fused with the option fuse_decomposed")


def _runtime(
    title: str,
    version: str,
    call: Support,
    custom: Support,
    ml_drift: Support,
    composite: Support,
    weightless: Support,
    decomposed: Support,
    plain: Support,
    *,
    float16: bool = False,
) -> Runtime:
    columns = (call, custom, ml_drift, composite, decomposed, plain)
    encodings = dict(zip(ENCODINGS, columns, strict=True))
    return Runtime(title, version, float16, encodings, weightless)


RUNTIMES: Mapping[str, Runtime] = {
    "interpreter_delegate": _runtime(
        "`arn.Interpreter`, LiteRT with the delegate",
        "ai-edge-litert 2.3.0",
        Support(Outcome.FUSED, "load_delegate alone needs `custom`"),
        _FUSED,
        _FUSED,
        _FUSED,
        _FUSED,
        _FUSED,
        _OPTION,
    ),
    "compiled_model_delegate": _runtime(
        "CompiledModel CPU with `arn.compiled_model.environment`",
        "ai-edge-litert 2.2.0, 2.3.0, 2.4.0.dev20261026",
        _NO_KERNEL,
        _FUSED,
        _FUSED,
        _FUSED,
        _FUSED,
        _FUSED,
        _DECOMPOSED,
    ),
    "tflite_runtime_delegate": _runtime(
        "tflite_runtime with the delegate",
        "2.14.0",
        _TOO_NEW,
        _FUSED,
        _FUSED,
        _TOO_NEW,
        _TOO_NEW,
        _FUSED,
        _OPTION,
    ),
    "interpreter": _runtime(
        "LiteRT Interpreter, stock",
        "ai-edge-litert 2.3.0",
        _NO_KERNEL,
        _NO_OPERATOR,
        _NO_OPERATOR,
        _DECOMPOSED,
        _DECOMPOSED,
        _DECOMPOSED,
        _DECOMPOSED,
    ),
    "compiled_model_cpu": _runtime(
        "CompiledModel CPU, stock",
        "ai-edge-litert 2.3.0",
        _NO_KERNEL,
        _NO_OPERATOR,
        _NO_OPERATOR,
        _DECOMPOSED,
        _DECOMPOSED,
        _DECOMPOSED,
        _DECOMPOSED,
    ),
    "litert_gpu": _runtime(
        "CompiledModel GPU, float16 (the default)",
        "ai-edge-litert 2.3.0",
        _NO_KERNEL,
        _NO_OPERATOR,
        _FUSED,
        _CRASH,
        _CRASH,
        _DECOMPOSED,
        Support(Outcome.SILENT_ZEROS),
        float16=True,
    ),
    "litert_gpu_float32": _runtime(
        "CompiledModel GPU, enforce_f32",
        "ai-edge-litert 2.3.0",
        _NO_KERNEL,
        _NO_OPERATOR,
        _FUSED,
        _CRASH,
        _CRASH,
        _DECOMPOSED,
        _DECOMPOSED,
    ),
    "litert_lm_cpu": _runtime(
        "LiteRT-LM CPU",
        "litert-lm 0.18.1",
        _NO_KERNEL,
        _NO_OPERATOR,
        _NO_OPERATOR,
        _DECOMPOSED,
        _UNKNOWN,
        _DECOMPOSED,
        _DECOMPOSED,
    ),
    "litert_lm_gpu": _runtime(
        "LiteRT-LM GPU",
        "litert-lm 0.18.1",
        _NO_KERNEL,
        _NO_OPERATOR,
        _FUSED,
        _FUSED,
        _UNKNOWN,
        _DECOMPOSED,
        Support(Outcome.DECOMPOSED, "not measured above |x| = 256"),
        float16=True,
    ),
    "litert_js_wasm": _runtime(
        "LiteRT.js, WebAssembly",
        "@litertjs/core 2.5.3",
        _NO_KERNEL,
        _WRONG,
        _WRONG,
        _DECOMPOSED,
        _DECOMPOSED,
        _DECOMPOSED,
        _DECOMPOSED,
    ),
    "litert_js_webgpu": _runtime(
        "LiteRT.js, WebGPU in float32",
        "@litertjs/core 2.5.3",
        _NO_KERNEL,
        _NO_OPERATOR,
        _FUSED,
        _FUSED,
        _CRASH,
        _DECOMPOSED,
        _DECOMPOSED,
    ),
    "openvino": _runtime(
        "OpenVINO CPU",
        "2026.4.1",
        _NO_OPERATOR,
        _NO_OPERATOR,
        _NO_OPERATOR,
        _FUSED,
        Support(Outcome.UNSUPPORTED, "expects 2 inputs"),
        _DECOMPOSED,
        Support(Outcome.FUSED, "where its own pattern matches"),
    ),
}

_PURPOSES = {"delegate": "custom", "gpu": "ml_drift", "npu": "composite"}
_PURPOSES["any"] = "decomposed"


def support(encoding: str, has_weight: bool, runtime: str) -> Support:
    """Returns how a runtime treats a norm.

    Args:
      encoding: One of ENCODINGS.
      has_weight: Whether the norm has a weight.
      runtime: A key of RUNTIMES.

    Raises:
      ValueError: There is no such encoding or runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(
            f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}"
        )
    if encoding not in ENCODINGS:
        raise ValueError(
            f"encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}"
        )
    if encoding == "composite" and not has_weight:
        return RUNTIMES[runtime].weightless_composite
    return RUNTIMES[runtime].encodings[encoding]


def encoding_for(purpose: str) -> str:
    """Returns the encoding to choose.

    Args:
      purpose: `delegate`: a runtime that has the delegate. `gpu`: LiteRT's GPU
        accelerator. `npu`: compilers for NPUs, and OpenVINO. `any`: any of them, at the
        price of several operators.

    Raises:
      ValueError: There is no such purpose.
    """
    if purpose not in _PURPOSES:
        raise ValueError(
            f"purpose must be one of {', '.join(_PURPOSES)}, got {purpose!r}"
        )
    return _PURPOSES[purpose]


def matrix() -> str:
    """Returns the table in Markdown: a row for each runtime."""
    columns = ["op 173", "`custom`", "`ml_drift`", "`composite`", "`decomposed`", PLAIN]
    columns.insert(4, "composite, no weight")
    lines = ["| runtime | version | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    notes: list[str] = []
    for runtime in RUNTIMES.values():
        cells = list(runtime.encodings.values())
        cells.insert(4, runtime.weightless_composite)
        texts = [_cell(cell, notes) for cell in cells]
        lines.append(
            f"| {runtime.title} | {runtime.version} | " + " | ".join(texts) + " |"
        )
    lines.append("")
    lines += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _cell(cell: Support, notes: list[str]) -> str:
    text = cell.outcome.value if cell.outcome.is_right else f"**{cell.outcome.value}**"
    if not cell.note:
        return text
    if cell.note not in notes:
        notes.append(cell.note)
    return f"{text} ({notes.index(cell.note) + 1})"
