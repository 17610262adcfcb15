"""LiteRT's profiler: how long the operators of a model take, by kind.

for signature, profile in profile_model("model.tflite").items():
    print(signature, profile.norm_share.median)
    for kind in profile.kinds:
        print(kind.kind, kind.count, kind.seconds.median)

Only CompiledModel has a profiler, and only in C: this calls the functions of the
runtime's library. The model runs as CompiledModel runs it on the CPU, with the norms on
the kernels of this package and the rest on XNNPACK.

The profiler reads memory statistics in each event of the interpreter, which takes
longer than a small norm. That cost is measured in each round, with an operator of
eight numbers, and subtracted. XNNPACK times its operators itself, in whole
microseconds that are rounded down. The time of a call is measured without the profiler,
so what both leave out is in `unattributed`. A norm is exact to about half a
microsecond.
"""

import collections
import contextlib
import ctypes
import dataclasses
import importlib.metadata
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ai_edge_litert
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.runtime import compiled_model, execution, interpreter
from ai_edge_rms_norm.runtime.model import fuse
from ai_edge_rms_norm.tflite import files, flatbuffer, inspection, op_options

__all__ = ["KindTime", "Profile", "Spread", "profile_model"]

_SUPPORTED = (2, 3)  # Others may have events of another layout.
_MINIMUM_ROUNDS = 5
_MAXIMUM_ROUNDS = 1000
_SAMPLE = 2e-3  # Seconds; short, so that few samples are interrupted.
_ROUNDING = 1e-6  # Of the seconds of XNNPACK's operators.
_SMALLEST_CALLS = 40  # Of the smallest norm, in a round.

# litert_any.h, litert_environment_options.h, litert_common.h.
_ANY_STRING = 8
_RUNTIME_LIBRARY_DIR = 22
_CPU = 1
_LOCK_WRITE = 1
# tflite::Profiler::EventType.
_DEFAULT, _OPERATOR, _DELEGATE_OPERATOR, _DELEGATE_PROFILED = 1, 2, 4, 8
_OPERATORS = (_OPERATOR, _DELEGATE_OPERATOR, _DELEGATE_PROFILED)
_CALL = "Invoke"
_NORM = "AiEdgeRmsNorm"  # The delegate's name of its nodes.
# Operators that run subgraphs; their time is that of the operators inside.
_CALLERS = frozenset(("CALL_ONCE", "IF", "STABLEHLO_COMPOSITE", "WHILE"))
# ProfiledEventData of LiteRT 2.3.
_EVENT = np.dtype(
    {
        "names": ["tag", "type", "start", "elapsed"],
        "formats": ["u8", "i4", "u8", "u8"],
        "offsets": [0, 8, 16, 24],
        "itemsize": 104,
    }
)
_RANDOM = {1: np.float32, 10: np.float16, 11: np.float64}  # By LiteRtElementType.


class _Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_char_p))


class _EnvironmentOption(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_int), ("value", _Any))


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    )


class _RankedTensorType(ctypes.Structure):
    _fields_ = (("element_type", ctypes.c_int32), ("layout", _Layout))


_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_KEEP = _Free(lambda _: None)  # Python frees what it allocated.


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median and the quartiles over the rounds.

    Attributes:
      median: Median.
      low: First quartile.
      high: Third quartile.
    """

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class KindTime:
    """The operators of one kind.

    Attributes:
      kind: As the runtime calls it.
      is_norm: Whether they are norms on the kernels of this package.
      count: How many of them a call runs.
      seconds: That all of them take in a call.
    """

    kind: str
    is_norm: bool
    count: int
    seconds: Spread


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of a signature goes.

    Attributes:
      seconds: Of a call, measured without the profiler.
      kinds: The operators by kind, the slowest first.
      unattributed: Seconds of a call that are of no operator, and what XNNPACK's whole
        microseconds leave out.
      norms: Seconds of all norms.
      rest: Seconds of everything else.
      norm_share: `norms` as a part of `seconds`.
      norms_by: `profiler`; or how the time of norms in the plain form was found, which
        run operator by operator among others of their kinds. `difference of calls`:
        what a call takes more than with these norms fused, their kernels left out.
        `difference of kinds`, where the calls vary too much for that: what the kinds
        take more of which there are fewer then, which leaves out up to a microsecond
        per operator, by which XNNPACK rounds.
    """

    seconds: Spread
    kinds: tuple[KindTime, ...]
    unattributed: Spread
    norms: Spread
    rest: Spread
    norm_share: Spread
    norms_by: str


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = statistics.quantiles(values, n=4)
    return Spread(median, low, high)


def _load_library() -> ctypes.CDLL:
    for package in ("ai-edge-litert", "ai-edge-litert-nightly"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(package)
            if tuple(int(part) for part in version.split(".")[:2]) != _SUPPORTED:
                raise RuntimeError(
                    "the profiler needs ai-edge-litert 2.3, whose events it knows;"
                    f" {package} is {version}"
                )
    path = pathlib.Path(str(ai_edge_litert.__file__)).with_name("libLiteRt.so")
    if not path.is_file():
        raise RuntimeError(f"the profiler needs LiteRT's library; {path} is missing")
    return ctypes.CDLL(str(path))


class _Runtime:
    """Calls LiteRT's C API, and gives back what that made in the reverse order."""

    def __init__(self, library: ctypes.CDLL, stack: contextlib.ExitStack) -> None:
        self._library = library
        self._stack = stack

    def call(self, name: str, *arguments: Any) -> None:
        values = [ctypes.c_size_t(a) if isinstance(a, int) else a for a in arguments]
        status = getattr(self._library, name)(*values)
        if status != 0:
            raise RuntimeError(f"{name} fails with status {status}")

    def get(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle

    def create(self, name: str, destroy: str, *arguments: Any) -> ctypes.c_void_p:
        handle = self.get(name, *arguments)
        destructor = getattr(self._library, destroy)
        destructor.restype = None
        self._stack.callback(destructor, handle)
        return handle


class _Profiled:
    """One signature of a compiled model, on random inputs, with its profiler."""

    def __init__(
        self,
        runtime: _Runtime,
        environment: ctypes.c_void_p,
        model: ctypes.c_void_p,
        compiled: ctypes.c_void_p,
        signature: int,
    ) -> None:
        self._runtime = runtime
        self._environment = environment
        self._compiled = compiled
        self._signature = signature
        self._profiler = runtime.get("LiteRtCompiledModelGetProfiler", compiled)
        self._tags: dict[int, str] = {}
        handle = runtime.get("LiteRtGetModelSignature", model, signature)
        key = ctypes.c_char_p()
        runtime.call("LiteRtGetSignatureKey", handle, ctypes.byref(key))
        self.name = os.fsdecode(key.value or b"")
        generator = np.random.default_rng(0)
        types = self._types(handle, "Input")
        for index, of_input in enumerate(types):
            sizes = of_input.layout.dimensions[: of_input.layout.rank]
            if any(size < 0 for size in sizes):
                sizes = [max(size, 1) for size in sizes]
                of_input.layout.dimensions[: len(sizes)] = sizes
                runtime.call(
                    "LiteRtCompiledModelResizeInputTensor",
                    compiled,
                    signature,
                    index,
                    of_input.layout.dimensions,
                    len(sizes),
                )
        self._inputs = self._buffers("Input", types)
        for buffer, of_input in zip(self._inputs, types, strict=True):
            self._write(buffer, _RANDOM.get(of_input.element_type), generator)
        types = self._types(handle, "Output")
        layouts = (_Layout * len(types))()
        runtime.call(
            "LiteRtGetCompiledModelOutputTensorLayouts",
            compiled,
            signature,
            len(types),
            layouts,
            ctypes.c_bool(True),
        )
        for of_output, layout in zip(types, layouts, strict=True):
            of_output.layout = layout
        self._outputs = self._buffers("Output", types)

    def _types(self, signature: ctypes.c_void_p, kind: str) -> list[_RankedTensorType]:
        count = ctypes.c_size_t()
        name = f"LiteRtGetNumSignature{kind}s"
        self._runtime.call(name, signature, ctypes.byref(count))
        types = [_RankedTensorType() for _ in range(count.value)]
        for index, of_tensor in enumerate(types):
            name = f"LiteRtGetSignature{kind}TensorByIndex"
            tensor = self._runtime.get(name, signature, index)
            name = "LiteRtGetRankedTensorType"
            self._runtime.call(name, tensor, ctypes.byref(of_tensor))
        return types

    def _buffers(self, kind: str, types: Sequence[_RankedTensorType]) -> Any:
        buffers = (ctypes.c_void_p * len(types))()
        for index, of_tensor in enumerate(types):
            requirements = self._runtime.get(
                f"LiteRtGetCompiledModel{kind}BufferRequirements",
                self._compiled,
                self._signature,
                index,
            )
            buffers[index] = self._runtime.create(
                "LiteRtCreateManagedTensorBufferFromRequirements",
                "LiteRtDestroyTensorBuffer",
                self._environment,
                ctypes.byref(of_tensor),
                requirements,
            ).value
        return buffers

    def _write(self, buffer: int, dtype: Any, generator: np.random.Generator) -> None:
        handle, size = ctypes.c_void_p(buffer), ctypes.c_size_t()
        name = "LiteRtGetTensorBufferPackedSize"
        self._runtime.call(name, handle, ctypes.byref(size))
        data = ctypes.c_void_p()
        self._runtime.call(
            "LiteRtLockTensorBuffer",
            handle,
            ctypes.byref(data),
            ctypes.c_int(_LOCK_WRITE),
        )
        # Zero is valid wherever an integer indexes something.
        values = np.zeros(size.value, np.uint8)
        if dtype is not None:
            count = size.value // np.dtype(dtype).itemsize
            values = generator.standard_normal(count).astype(dtype)
        ctypes.memmove(data, values.ctypes.data, values.nbytes)
        self._runtime.call("LiteRtUnlockTensorBuffer", handle)

    def run(self) -> None:
        self._runtime.call(
            "LiteRtRunCompiledModel",
            self._compiled,
            self._signature,
            len(self._inputs),
            self._inputs,
            len(self._outputs),
            self._outputs,
        )

    def events(self, calls: int) -> list[tuple[str, int, float]]:
        """Runs the model; returns tag, type and microseconds of each event."""
        runtime, profiler = self._runtime, self._profiler
        runtime.call("LiteRtResetProfiler", profiler)
        runtime.call("LiteRtStartProfiler", profiler)
        for _ in range(calls):
            self.run()
        runtime.call("LiteRtStopProfiler", profiler)
        count = ctypes.c_int()
        runtime.call("LiteRtGetNumProfilerEvents", profiler, ctypes.byref(count))
        events = np.zeros(count.value, _EVENT)
        runtime.call(
            "LiteRtGetProfilerEvents",
            profiler,
            ctypes.c_int(count.value),
            ctypes.c_void_p(events.ctypes.data),
        )
        for pointer in set(events["tag"].tolist()) - set(self._tags):
            self._tags[pointer] = ctypes.string_at(pointer).decode(errors="replace")
        return [
            (self._tags[tag], kind, elapsed)
            for tag, kind, _, elapsed in events.tolist()
        ]


@contextlib.contextmanager
def _profiled(
    library: ctypes.CDLL, paths: Sequence[pathlib.Path], threads: int
) -> Iterator[list[list[_Profiled]]]:
    """Compiles files; gives the signatures of each."""
    with contextlib.ExitStack() as stack:
        runtime = _Runtime(library, stack)
        with compiled_model.accelerator(threads) as folder:
            option = _EnvironmentOption(
                _RUNTIME_LIBRARY_DIR, _Any(_ANY_STRING, os.fsencode(folder))
            )
            environment = runtime.create(
                "LiteRtCreateEnvironment",
                "LiteRtDestroyEnvironment",
                ctypes.c_int(1),
                ctypes.byref(option),
            )
        texts = {
            b"runtime_options_string": b"enable_profiling = true\n",
            b"xnnpack": b"num_threads = %d\n" % threads,
        }
        payloads = {name: ctypes.create_string_buffer(t) for name, t in texts.items()}
        stack.callback(payloads.clear)
        result = []
        for path in paths:
            model = runtime.create(
                "LiteRtCreateModelFromFile",
                "LiteRtDestroyModel",
                environment,
                os.fsencode(path),
            )
            options = runtime.create("LiteRtCreateOptions", "LiteRtDestroyOptions")
            name = "LiteRtSetOptionsHardwareAccelerators"
            runtime.call(name, options, ctypes.c_int(_CPU))
            for identifier, payload in payloads.items():
                name = "LiteRtCreateOpaqueOptions"
                opaque = runtime.get(name, identifier, payload, _KEEP)
                runtime.call("LiteRtAddOpaqueOptions", options, opaque)
            compiled = runtime.create(
                "LiteRtCreateCompiledModel",
                "LiteRtDestroyCompiledModel",
                environment,
                model,
                options,
            )
            count = ctypes.c_size_t()
            runtime.call("LiteRtGetNumModelSignatures", model, ctypes.byref(count))
            signatures = range(count.value)
            result.append(
                [
                    _Profiled(runtime, environment, model, compiled, i)
                    for i in signatures
                ]
            )
        yield result


def _smallest_norm() -> bytes:
    """Returns a model of one norm of eight numbers."""
    tensors = [
        schema.TensorT(shape=[1, 8], type=schema.TensorType.FLOAT32, name=name)
        for name in (b"x", b"y")
    ]
    custom = schema.BuiltinOperator.CUSTOM
    code = schema.OperatorCodeT(
        builtinCode=custom,
        customCode=op_options.RMS_NORM.encode(),
        deprecatedBuiltinCode=custom,
        version=1,
    )
    options = np.frombuffer(op_options.encode_custom_options(1e-6), np.uint8)
    operator = schema.OperatorT(inputs=[0], outputs=[1], customOptions=options)
    graph = schema.SubGraphT(
        tensors=tensors, inputs=[0], outputs=[1], operators=[operator]
    )
    return flatbuffer.to_bytes(
        schema.ModelT(
            version=3,
            operatorCodes=[code],
            subgraphs=[graph],
            buffers=[schema.BufferT()],
        )
    )


def _mean_of_norm(model: _Profiled, calls: int) -> float:
    times = [us for tag, _, us in model.events(calls) if tag == _NORM]
    return statistics.fmean(times)


class _Samples:
    """The measurements of one signature, by round, in seconds."""

    def __init__(self, model: _Profiled) -> None:
        self._model = model
        model.events(1)
        start = time.perf_counter()
        model.events(1)
        elapsed = time.perf_counter() - start
        self.calls = max(1, round(_SAMPLE / elapsed))
        self.seconds: list[float] = []
        self.unattributed: list[float] = []
        self.kinds: dict[str, list[float]] = collections.defaultdict(list)
        self.counts: dict[str, int] = {}

    def add(self, event_cost: float) -> None:
        """Measures a round; `event_cost` is that of an event, in microseconds."""
        self._model.run()
        self.seconds.append(statistics.median(self._timed() for _ in range(self.calls)))
        totals: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, int] = collections.Counter()
        for tag, kind, elapsed in self._model.events(self.calls):
            if kind in _OPERATORS and tag not in _CALLERS:
                totals[tag] += elapsed - (event_cost if kind == _OPERATOR else 0)
                counts[tag] += 1
        self.counts = {tag: n // self.calls for tag, n in counts.items()}
        for tag, microseconds in totals.items():
            self.kinds[tag].append(max(0.0, microseconds * 1e-6 / self.calls))
        attributed = sum(values[-1] for values in self.kinds.values())
        self.unattributed.append(self.seconds[-1] - attributed)

    def _timed(self) -> float:
        start = time.perf_counter()
        self._model.run()
        return time.perf_counter() - start

    @property
    def norms(self) -> list[float]:
        return self.kinds.get(_NORM, [0.0] * len(self.seconds))


def _difference(samples: _Samples, fused: _Samples) -> tuple[list[float], str]:
    """Returns what plain norms take, and what that is the difference of."""
    more = {
        kind: count - fused.counts.get(kind, 0)
        for kind, count in samples.counts.items()
        if count > fused.counts.get(kind, 0)
    }
    of_calls = [
        total - norm - (other - fused_norm)
        for total, norm, other, fused_norm in zip(
            samples.seconds, samples.norms, fused.seconds, fused.norms, strict=True
        )
    ]
    spread = _spread(of_calls)
    if spread.high - spread.low <= sum(more.values()) * _ROUNDING:
        return of_calls, "difference of calls"
    # The noise of everything else would hide them.
    less = sum(statistics.median(fused.kinds.get(kind, [0.0])) for kind in more)
    rounds = range(len(samples.seconds))
    of_kinds = [sum(samples.kinds[kind][i] for kind in more) - less for i in rounds]
    return of_kinds, "difference of kinds"


def _profile(samples: _Samples, fused: _Samples | None) -> Profile:
    norms, norms_by = samples.norms, "profiler"
    if fused is not None:
        plain, norms_by = _difference(samples, fused)
        norms = [norm + more for norm, more in zip(norms, plain, strict=True)]
    pairs = list(zip(norms, samples.seconds, strict=True))
    kinds = [
        KindTime(kind, kind == _NORM, samples.counts[kind], _spread(values))
        for kind, values in samples.kinds.items()
    ]
    return Profile(
        seconds=_spread(samples.seconds),
        kinds=tuple(sorted(kinds, key=lambda kind: -kind.seconds.median)),
        unattributed=_spread(samples.unattributed),
        norms=_spread(norms),
        rest=_spread([total - norm for norm, total in pairs]),
        norm_share=_spread([norm / total for norm, total in pairs]),
        norms_by=norms_by,
    )


def profile_model(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    fuse_decomposed: bool = False,
    seconds: float = 1.0,
) -> Mapping[str, Profile]:
    """Measures the operators of a .tflite on random inputs, zeros for integers.

    Args:
      path: Of the .tflite.
      threads: Number of threads.
      fuse_decomposed: Whether norms in the plain form run on the fused kernels, too.
      seconds: How long to measure each signature, about; at least 5 rounds.

    Returns:
      By signature; `subgraph 0` without any.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a .tflite, or damaged.
      RuntimeError: LiteRT is not of version 2.3, or does not run the model.
      FileNotFoundError: The package was built without the delegate.
    """
    library = _load_library()
    content = files.read_file(path)
    has_names = bool(flatbuffer.read(content, os.fspath(path)).signatureDefs)
    is_plain = any(n.encoding == backends.PLAIN for n in inspection.inspect(path).norms)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        smallest = folder / "smallest.tflite"
        smallest.write_bytes(_smallest_norm())
        paths = [smallest, pathlib.Path(path)]
        if is_plain:
            fused = folder / "fused.tflite"
            fuse(path)[0].export(fused)
            paths[1 if fuse_decomposed else 2 :] = [fused]
        if not (is_plain and fuse_decomposed):
            resolved = interpreter.resolve_custom_calls(content, os.fspath(path))
            if resolved is not None:
                paths[1] = folder / "resolved.tflite"
                paths[1].write_bytes(resolved)
        with _profiled(library, paths, threads) as compiled:
            return {
                of_model[0].name if has_names else execution.NO_SIGNATURE: _measure(
                    compiled[0][0], of_model, seconds
                )
                for of_model in zip(*compiled[1:], strict=True)
            }


def _measure(
    smallest: _Profiled, models: Sequence[_Profiled], seconds: float
) -> Profile:
    samples = [_Samples(model) for model in models]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _MINIMUM_ROUNDS or (
        rounds < _MAXIMUM_ROUNDS and time.perf_counter() < end
    ):
        cost = _mean_of_norm(smallest, _SMALLEST_CALLS)
        for of_model in samples:
            of_model.add(cost)
        rounds += 1
    return _profile(samples[0], samples[1] if len(samples) == 2 else None)
