"""Says before a model is shipped which of its norms would overflow, and where.

report = check("model.tflite", "inputs.npz")
print(report)
report.plot("norms.png")
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from numpy import typing as npt

from ai_edge_rms_norm import backends, tables
from ai_edge_rms_norm.runtime import execution, pictures
from ai_edge_rms_norm.runtime import gpu as gpu_lib
from ai_edge_rms_norm.runtime.model import Model
from ai_edge_rms_norm.tflite import bundle as bundle_lib
from ai_edge_rms_norm.tflite import edit, flatbuffer, inspection
from ai_edge_rms_norm.tflite import encoding as encoding_lib

__all__ = ["CheckReport", "CheckedNorm", "Statistics", "check"]

# Largest finite numbers (IEEE 754 binary16; bfloat16 has 8 bits of significand).
_LARGEST = {"float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127}
# The square of a larger |x| is not a float16; close to 256.
_LARGEST_X = _LARGEST["float16"] ** 0.5
_INPUTS = Mapping[str, npt.ArrayLike] | str | os.PathLike[str] | int | None


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of all rows that a norm was given, over all runs.

    Attributes:
      rows: Number of rows.
      max_abs: The largest |x|.
      max_sum_of_squares: The largest sum of squares of a row.
      min_mean_square: The smallest mean square of a row.
      max_result: The largest |y|.
      non_finite: Number of elements of x that are infinite or NaN; they do not count
        elsewhere.
    """

    rows: int
    max_abs: float
    max_sum_of_squares: float
    min_mean_square: float
    max_result: float
    non_finite: int

    def overflows(self, dtype: str) -> tuple[str, ...]:
        """Returns which of `x`, `square`, `sum`, `result` leave a type.

        Args:
          dtype: `float16` or `bfloat16`.
        """
        values = {
            "x": self.max_abs,
            "square": self.max_abs**2,
            "sum": self.max_sum_of_squares,
            "result": self.max_result,
        }
        return tuple(k for k, value in values.items() if value > _LARGEST[dtype])


@dataclasses.dataclass(frozen=True)
class CheckedNorm:
    """A norm and the numbers that it was given.

    Attributes:
      norm: The norm that was checked.
      is_range_safe: Whether float16 runtimes compute it right whatever |x| is below
        65504: decomposed in the range-safe form, a composite with such a
        decomposition, or an operator that is computed in float32.
      statistics: None where it did not run.
      reason: Why it did not run, else empty.
    """

    norm: inspection.InspectedNorm
    is_range_safe: bool
    statistics: Statistics | None
    reason: str

    @property
    def finding(self) -> str:
        """The problem in words; empty if there is none."""
        if self.statistics is None:
            return ""
        numbers = self.statistics
        if numbers.non_finite:
            return f"{numbers.non_finite} elements of x are infinite or NaN"
        overflows = numbers.overflows("float16")
        for name, value in (("x", numbers.max_abs), ("result", numbers.max_result)):
            if name in overflows:
                return (
                    f"{name} leaves float16 itself, with {value:.4g}: use float32 on"
                    " the GPU (enforce_f32)"
                )
        if self.is_range_safe:
            return ""
        if "square" in overflows:
            return (
                f"|x| reaches {numbers.max_abs:.4g}, above 256: its square overflows"
                " in float16, and the row becomes 0"
            )
        if "sum" in overflows:
            return (
                f"the sum of squares reaches {numbers.max_sum_of_squares:.4g}, above"
                " 65504: it overflows in float16, and the row may become 0"
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as what JSON can hold; the fields are those of the classes."""
        numbers = self.statistics
        return {
            **dataclasses.asdict(self.norm),
            "is_range_safe": self.is_range_safe,
            "statistics": None if numbers is None else dataclasses.asdict(numbers),
            "overflows": {t: numbers.overflows(t) for t in _LARGEST} if numbers else {},
            "finding": self.finding,
            "reason": self.reason,
        }


_FEW = 4  # Inputs, or norms with one reason, that the summary names.
_COLUMNS = (
    "norm",
    "signature",
    "size",
    "epsilon",
    "encoding",
    "range-safe",
    "max|x|",
    "sum of squares",
    "min mean square",
    "leaves float16",
    "leaves bfloat16",
)


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
      name: Name of the file, or `model`.
      inputs: The inputs of the run, in words.
      norms: The norms, in the order of the file.
      inspection: The contents of the file, and which runtimes run it.
      gpu: How each model, as it is, computes on LiteRT's GPU accelerator, in float16
        and float32; empty unless it was asked for.
    """

    name: str
    inputs: str
    norms: tuple[CheckedNorm, ...]
    inspection: inspection.Inspection
    gpu: tuple[gpu_lib.GpuResult, ...] = ()

    @property
    def findings(self) -> tuple[CheckedNorm, ...]:
        """The norms with which something is wrong."""
        return tuple(norm for norm in self.norms if norm.finding)

    @property
    def gpu_findings(self) -> tuple[gpu_lib.GpuResult, ...]:
        """The runs on the GPU with which something is wrong."""
        return tuple(result for result in self.gpu if result.finding)

    @property
    def cure(self) -> str:
        """The command that cures norms which overflow; empty where none does."""
        suspects = self.norms if self.gpu_findings else self.findings
        # LiteRT's GPU accelerator crashes on composites.
        composite = encoding_lib.Encoding.COMPOSITE.value
        if all(n.is_range_safe and n.norm.encoding != composite for n in suspects):
            return ""
        return (
            f"ai-edge-rms-norm fuse {self.name} OUTPUT --to decomposed (for any"
            " runtime), or --to ml_drift (fused on LiteRT's GPU)"
        )

    def rows(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """Returns the names of the columns of the table of norms, and its rows."""
        return _COLUMNS, [_row(norm) for norm in self.norms]

    def summary(self) -> str:
        """Returns the findings and their cure, one line each."""
        lines = [f"{norm.norm.title}: {norm.finding}" for norm in self.findings]
        lines += [result.summary() for result in self.gpu]
        if self.cure:
            lines.append(f"cure: {self.cure}")
        unmeasured = [norm for norm in self.norms if norm.statistics is None]
        by_reason: dict[str, list[str]] = {}
        for norm in unmeasured:
            by_reason.setdefault(norm.reason, []).append(norm.norm.title)
        for reason, titles in by_reason.items():
            few = titles if len(titles) <= _FEW else [f"{len(titles)} norms"]
            lines += [f"{title}: not measured: {reason}" for title in few]
        lines.append(
            f"{self.name}: {len(self.norms)} norms,"
            f" {len(self.findings) + len(self.gpu_findings)} findings,"
            f" {len(unmeasured)} not measured; inputs: {self.inputs}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as what JSON can hold."""
        return {
            "inputs": self.inputs,
            "norms": [norm.to_dict() for norm in self.norms],
            "gpu": [result.to_dict() for result in self.gpu],
            "findings": len(self.findings) + len(self.gpu_findings),
            "cure": self.cure,
        }

    def gpu_rows(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """Returns the columns of the table of outputs on the GPU, and its rows."""
        tables = [result.rows() for result in self.gpu]
        rows = [row for _, rows in tables for row in rows]
        return tables[0][0] if tables else (), rows

    def _runtimes(self) -> tuple[tuple[str, ...], list[list[str]]]:
        return ("runtime", "norms"), [
            [
                backends.RUNTIMES[report.runtime].title.replace("`", ""),
                ", ".join(f"{n} {o.value}" for o, n in report.outcomes.items()),
            ]
            for report in self.inspection.runtimes()
        ]

    def __str__(self) -> str:
        parts = [self.summary()]
        if self.norms:
            parts = [tables.text_table(*self.rows()), *parts]
            parts.append(tables.text_table(*self._runtimes()))
        if self.gpu_rows()[1]:
            parts.append(tables.text_table(*self.gpu_rows()))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [tables.html_table(self.summary(), *self.rows())]
        if not self.norms:
            parts = [tables.html_table(self.summary(), (), ())]
        else:
            parts.append(tables.html_table("Runtimes", *self._runtimes()))
        if self.gpu_rows()[1]:
            parts.append(tables.html_table("GPU and CPU", *self.gpu_rows()))
        return "".join(parts)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws max|x| of each norm over depth, and the 256 line of float16.

        Args:
          path: The picture to write; its suffix says the format, PNG without one.

        Raises:
          ImportError: matplotlib is not installed.
          OSError: The file cannot be written.
          ValueError: No norm was measured, or the format is not known.
        """
        shown = [
            (i, norm, norm.statistics.max_abs)
            for i, norm in enumerate(self.norms)
            if norm.statistics is not None
        ]
        if not shown:
            raise ValueError(f"{self.name}: no norm was measured, nothing to draw")
        figure = pictures.new_figure(8, 4)
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        axes.axhline(_LARGEST_X, color="tab:red", linestyle="--", label="256: float16")
        for has_finding, color, label in (
            (False, "tab:blue", "safe"),
            (True, "tab:red", "overflows"),
        ):
            points = [(i, y) for i, n, y in shown if bool(n.finding) == has_finding]
            if points:
                axes.scatter(*zip(*points, strict=True), color=color, label=label)
        # 0 has no place on a logarithmic axis.
        if all(y > 0 for *_, y in shown):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("norm, in the order of the file")
        axes.set_ylabel("max|x|")
        axes.set_title(pathlib.PurePath(self.name).name)
        axes.legend()
        pictures.write_figure(figure, path)


def _row(checked: CheckedNorm) -> list[str]:
    norm, numbers = checked.norm, checked.statistics
    cells = [
        f"{norm.model}, {norm.title}" if norm.model else norm.title,
        ", ".join(norm.signatures),
        str(norm.hidden_size),
        repr(norm.epsilon),
        str(norm.encoding),
        "yes" if checked.is_range_safe else "no",
    ]
    if numbers is None:
        return [*cells, "", "", "", "", ""]
    return [
        *cells,
        f"{numbers.max_abs:.4g}",
        f"{numbers.max_sum_of_squares:.4g}",
        f"{numbers.min_mean_square:.4g}",
        *(", ".join(numbers.overflows(dtype)) or "nothing" for dtype in _LARGEST),
    ]


@dataclasses.dataclass
class _Measured:
    """A norm of the copy that runs, and what it was given so far."""

    norm: encoding_lib.RmsNormOp
    subgraph: schema.SubGraphT
    x: schema.TensorT
    y: schema.TensorT
    is_range_safe: bool
    statistics: Statistics | None = None

    def read(self, interpreter: litert.Interpreter, subgraph: int) -> None:
        """Adds what its tensors hold after a run."""
        # By identity: tensors may have been renumbered, and equal ones exist.
        x, y = (
            interpreter.get_tensor(
                next(i for i, t in enumerate(self.subgraph.tensors) if t is tensor),
                subgraph,
            ).astype(np.float64)
            for tensor in (self.x, self.y)
        )
        self.statistics = _merged(self.statistics, _statistics(x, y))


def _statistics(x: np.ndarray, y: np.ndarray) -> Statistics | None:
    if not x.size:
        return None
    rows = x.reshape(-1, x.shape[-1])
    finite = np.isfinite(rows)
    rows = np.where(finite, rows, 0)
    # The largest float32 squared, times a row, is within float64.
    sums = (rows * rows).sum(-1)
    return Statistics(
        len(rows),
        float(np.abs(rows).max()),
        float(sums.max()),
        float(sums.min() / rows.shape[-1]),
        float(np.abs(np.where(np.isfinite(y), y, 0)).max()),
        int((~finite).sum()),
    )


def _merged(a: Statistics | None, b: Statistics | None) -> Statistics | None:
    if a is None or b is None:
        return a or b
    return Statistics(
        a.rows + b.rows,
        max(a.max_abs, b.max_abs),
        max(a.max_sum_of_squares, b.max_sum_of_squares),
        min(a.min_mean_square, b.min_mean_square),
        max(a.max_result, b.max_result),
        a.non_finite + b.non_finite,
    )


def _runnable(tree: schema.ModelT) -> list[_Measured]:
    """Decomposes what stock kernels do not run, in place; returns the norms."""
    survey = encoding_lib.Survey(tree)
    measured = []
    for norm in survey.norms:
        subgraph = tree.subgraphs[norm.subgraph]
        # An addition normalizes the total, its first output.
        x = norm.inputs[0] if len(norm.outputs) == 1 else norm.outputs[0]
        is_operator = norm.encoding not in (
            encoding_lib.Encoding.COMPOSITE,
            encoding_lib.Encoding.DECOMPOSED,
        )
        measured.append(
            _Measured(
                norm,
                subgraph,
                subgraph.tensors[x],
                subgraph.tensors[norm.outputs[-1]],
                is_operator or survey.is_range_safe(norm),
            )
        )
    decomposed = encoding_lib.Encoding.DECOMPOSED
    norms = [
        norm
        for norm in survey.norms
        if norm.encoding != decomposed
        # Stock kernels run composites, too, by their decomposition.
        and not (
            norm.encoding == encoding_lib.Encoding.COMPOSITE
            and encoding_lib.why_not(tree, norm, decomposed)
        )
    ]
    if norms:
        # The order of operators that model_control_dependencies asks for is that of
        # the file, which is kept where no delegate changes it.
        tree.metadata = None
        encoding_lib.rewrite(tree, survey, norms, decomposed)
    return measured


def _inputs_of(
    runner: execution.Runner, inputs: Mapping[str, npt.ArrayLike] | int
) -> Iterable[dict[str, np.ndarray]]:
    if isinstance(inputs, int):
        return (execution.random_inputs(runner, seed) for seed in range(inputs))
    return (runner.check_inputs(inputs),)


def _measure(
    tree: schema.ModelT,
    inputs: Mapping[str, npt.ArrayLike] | int,
    signature: str | None,
    keep: bool,
) -> tuple[list[_Measured], set[str], list[gpu_lib.Run]]:
    """Runs a model; returns its norms, the signatures that ran, and the runs kept."""
    measured = _runnable(tree)
    interpreter = litert.Interpreter(
        model_content=flatbuffer.to_bytes(tree),
        experimental_preserve_all_tensors=True,
        # XNNPACK keeps its intermediates to itself.
        experimental_op_resolver_type=(
            litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    subgraphs = {
        edit.text(entry.signatureKey): int(entry.subgraphIndex)
        for entry in tree.signatureDefs or ()
    }
    ran = set()
    runs = []
    runners = execution.runners(interpreter, signature)
    for name, runner in runners.items():
        is_other = not isinstance(inputs, int) and set(inputs) != set(runner.inputs)
        if is_other and len(runners) > 1:
            continue
        index = subgraphs.get(name, 0)
        for values in _inputs_of(runner, inputs):
            outputs = runner(values)
            if keep:
                key = None if name == execution.NO_SIGNATURE else name
                runs.append(gpu_lib.Run(key, values, outputs))
            for norm in measured:
                if norm.subgraph is tree.subgraphs[index]:
                    norm.read(interpreter, index)
        ran.add(name)
    return measured, ran, runs


def check(
    model: "Model | bytes | str | os.PathLike[str]",
    inputs: _INPUTS = None,
    *,
    signature: str | None = None,
    gpu: bool = False,
) -> CheckReport:
    """Runs a model on the CPU and says which norms would overflow in float16.

    The model runs on LiteRT's stock kernels, without delegates, with every tensor
    kept, so that x and y of each norm can be read. The kernels know decomposed norms
    only; therefore a copy in memory runs, in which the norms of every other encoding
    are decomposed, in the range-safe form. Squares, sums and means are those of the x
    that was read, in float64. Norms in the branches and bodies of control flow are
    not measured.

    A norm is a finding where x or its result leaves float16, or where the encoding is
    not range-safe and the square or the sum of squares does.

    With `gpu`, the model as it is runs on LiteRT's GPU accelerator, too, in processes
    of their own, on the same inputs: in float16, the default there, and in float32.
    Its outputs are compared with those of the CPU. Float16 is a finding where an output
    is not finite, or has a cosine below 0.99 with the CPU's, or the process crashes.

    Args:
      model: The bytes or the path of a .tflite, the path of a .litertlm or .task, or a
        Model.
      inputs: By name, as the signature has them, or the path of a .npz with them; or
        the number of random runs, default 1, from N(0, 1), with zeros for integers.
        Real inputs tell more. Of several signatures, those with such inputs run.
      signature: The only one to run; default all.
      gpu: Whether to run it on the GPU, too. That there is none is said in the report.

    Raises:
      ImportError: It is a .litertlm, and litert-lm-builder is not installed.
      OSError: A file cannot be read.
      ValueError: The model is damaged, does not run on the CPU, or has no signature
        with such inputs.
    """
    name, kind, models = _open(model)
    values, described = _read(inputs)
    norms: list[CheckedNorm] = []
    ran: set[str] = set()
    on_gpu: list[gpu_lib.GpuResult] = []
    result = inspection.inspect_models(kind, models, name)
    for part in models:
        full_name = f"{name}, {part.name}" if part.name else name
        try:
            measured, names, runs = _measure(
                flatbuffer.read(part.content, full_name), values, signature, gpu
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{full_name}: {error}") from error
        ran |= names
        if runs:
            on_gpu += gpu_lib.compare_with_cpu(part.name, part.content, runs)
        of_part = [norm for norm in result.norms if norm.model == part.name]
        norms += [
            CheckedNorm(norm, m.is_range_safe, m.statistics, _why_not(norm, m, names))
            for norm, m in zip(of_part, measured, strict=True)
        ]
    if not ran:
        raise ValueError(f"{name}: no signature has the inputs {described}")
    return CheckReport(name, described, tuple(norms), result, tuple(on_gpu))


def _why_not(norm: inspection.InspectedNorm, measured: _Measured, ran: set[str]) -> str:
    if measured.statistics is not None:
        return ""
    if norm.signatures and not ran & set(norm.signatures):
        return f"the signature {', '.join(norm.signatures)} did not run"
    if norm.signatures or not norm.subgraph:
        return "x has no rows"
    return f"subgraph {norm.subgraph} belongs to control flow, or is not called"


def _open(
    model: "Model | bytes | str | os.PathLike[str]",
) -> tuple[str, str, tuple[bundle_lib.BundledModel, ...]]:
    if isinstance(model, (bytes, Model)):
        content = bundle_lib.BundledModel("", memoryview(bytes(model)))
        return "model", "tflite", (content,)
    bundle = bundle_lib.read_bundle(model)
    return os.fspath(model), bundle.kind, bundle.models


def _read(inputs: _INPUTS) -> tuple[Mapping[str, npt.ArrayLike] | int, str]:
    """Returns the inputs, or how often to run, and a description."""
    if inputs is None or isinstance(inputs, int):
        count = 1 if inputs is None else inputs
        if count < 1:
            raise ValueError(f"inputs must be at least 1 random run, got {count}")
        return count, f"{count} x random N(0, 1)"
    if isinstance(inputs, Mapping):
        return inputs, _names(inputs)
    values = execution.read_inputs(inputs)
    if isinstance(values, np.ndarray):
        raise ValueError(f"{os.fspath(inputs)}: expected a .npz, which has names")  # noqa: TRY004
    return values, f"{_names(values)} of {os.fspath(inputs)}"


def _names(inputs: Mapping[str, Any]) -> str:
    # A language model has one for each key and each value in the cache.
    return ", ".join(inputs) if len(inputs) <= _FEW else f"{len(inputs)} inputs"
