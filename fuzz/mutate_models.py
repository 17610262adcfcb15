"""Mutates valid models, and compares what becomes of them with the stock runtime.

    python -m fuzz.mutate_models --executions=2000 --seed=15

Each mutant, of a changed field or of changed bytes, is translated and fused, and the
results run with the delegate; if the stock interpreter runs the mutant itself, the
numbers must be the same. All of that happens in child processes with limits of time
and memory; one that dies is replaced, and the step repeated. Anything but a result or
a ValueError (of the runtime also RuntimeError) is a failure; a crash that the stock
interpreter has, too, is counted apart, and so are numbers that have no meaning. The
mutants follow from the seed alone. Ends with a line of figures and, on failures,
status 1.
"""

import argparse
import collections
import itertools
import multiprocessing
import pathlib
import random
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import flatbuffer
from testing.tflite_builder import Builder

# Limits of a step; steps of one child.
_SECONDS, _BYTES, _STEPS = 20, 6 << 30, 500
# An epsilon that is seen in the numbers if it is lost.
_SIZE, _EPSILON = 16, 0.75
_Arrays = list[np.ndarray]


def _norm(b: Builder, x: int, weight: int) -> int:
    mean = b.reduce("MEAN", b("MUL", x, x))
    inverse = b("RSQRT", b("ADD", mean, b.constant(_EPSILON)))
    return b("MUL", b("MUL", x, inverse), weight)


def _seeds() -> list[bytes]:
    """Returns a norm between two operators in every encoding."""
    b = Builder()
    x = b.input((2, _SIZE))
    weight = b.constant(np.linspace(-2, 3, _SIZE))
    y = _norm(b, b("ADD", x, b.constant(0.5)), weight)
    decomposed = b.content(b("MUL", y, b.constant(2.0)))
    fused = bytes(arn.fuse(decomposed)[0])
    return [decomposed, *(arn.translate(fused, encoding) for encoding in arn.Encoding)]


def _change_field(rng: random.Random, model: schema.ModelT) -> None:
    """Gives one field of the object tree another value."""
    graph = rng.choice(model.subgraphs)
    objects = [
        *graph.tensors,
        *graph.operators,
        *(o.builtinOptions for o in graph.operators),
        *(o.builtinOptions2 for o in graph.operators),
        *model.operatorCodes,
        graph,
    ]
    # Some options have no fields.
    item = rng.choice([o for o in objects if o is not None and vars(o)])
    name = rng.choice(sorted(vars(item)))
    value = getattr(item, name)
    if isinstance(value, bool | int):
        setattr(item, name, rng.choice((value + 1, value - 1, 0, -1, 1, 2, 127)))
    elif isinstance(value, float):
        setattr(item, name, rng.choice((0.0, -1.0, float("inf"), float("nan"))))
    elif isinstance(value, bytes):
        setattr(item, name, rng.choice((b"", b"odml.rms_norm", value[:-1])))
    elif isinstance(value, np.ndarray) and value.size and value.dtype != object:
        changed = value.copy()
        kind = rng.randrange(3)
        if kind == 0:
            changed[rng.randrange(changed.size)] = rng.choice((0, 1, 2, 3, 16, 255))
        elif kind == 1:
            changed = changed[:-1]
        else:
            changed = np.concatenate([changed, changed[:1]])
        setattr(item, name, changed)
    elif isinstance(value, list) and value:
        setattr(item, name, rng.choice((value[:-1], value + value[:1], value[::-1])))


def mutant(seeds: list[bytes], seed: int, index: int) -> bytes:
    """Returns a mutant, which depends on nothing else."""
    rng = random.Random(f"{seed}/{index}")
    content = rng.choice(seeds)
    if rng.random() < 0.7:
        model = flatbuffer.read(content)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change_field(rng, model)
        try:
            return flatbuffer.to_bytes(model)
        except Exception:  # The object API cannot write it, nor could a file have it.
            pass
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _run(interpreter: litert.Interpreter) -> _Arrays:
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        values = rng.standard_normal(detail["shape"]) * 3
        interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
    interpreter.invoke()
    details = interpreter.get_output_details()
    return [np.array(interpreter.get_tensor(d["index"])) for d in details]


def _rewritten(content: bytes) -> list[bytes]:
    """Returns the mutant fused, and translated to each encoding; [] if refused."""
    try:
        results = [bytes(arn.fuse(content)[0])]
        for encoding in arn.Encoding:
            results.append(arn.translate(content, encoding))
    except ValueError:
        return []
    return results


def _ours(content: bytes) -> _Arrays:
    return _run(arn.Interpreter(model_content=content, num_threads=1))


def _stock(content: bytes) -> _Arrays:
    return _run(litert.Interpreter(model_content=content, num_threads=1))


def _overflows(content: bytes) -> bool:
    """Whether a value on the way is infinite or NaN in the stock interpreter.

    Then decomposed operators are wrong where the kernel, in a wider range, is not.
    """
    interpreter = litert.Interpreter(
        model_content=content,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        # XNNPACK keeps its intermediates to itself.
        experimental_op_resolver_type=(
            litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    _run(interpreter)
    tensors = [
        interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if np.issubdtype(detail["dtype"], np.floating)
    ]
    return not all(np.isfinite(tensor).all() for tensor in tensors)


def _is_undefined(content: bytes) -> bool:
    """Whether the stock interpreter's numbers mean nothing.

    It reads tensors that nothing has written yet, and the bits of floats as integers
    where the file states such a type for their product.
    """
    model = flatbuffer.read(content)
    for graph in model.subgraphs:
        types = [tensor.type for tensor in graph.tensors]
        written = {int(i) for i in graph.inputs} | {-1}
        written |= {
            i
            for i, tensor in enumerate(graph.tensors)
            if model.buffers[tensor.buffer].data is not None or tensor.isVariable
        }
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex].builtinCode
            read = [int(i) for i in operator.inputs]
            results = [int(i) for i in operator.outputs]
            if code == schema.BuiltinOperator.MUL and any(
                types[i] != types[read[0]] for i in (*read, *results)
            ):
                return True
            if not written.issuperset(read):
                return True
            written.update(results)
        if not written.issuperset(int(i) for i in graph.outputs):
            return True
    return False


def _answer(pipe: connection.Connection) -> None:
    """Runs in a child: answers (step, content) until the pipe is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    while True:
        try:
            step, content = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("result", step(content)))
        except (ValueError, RuntimeError) as error:
            pipe.send(("refused", str(error)))
        except BaseException as error:
            pipe.send(("traceback", repr(error)))


class _Child:
    """A process that runs steps, replaced when it dies and now and then."""

    def __init__(self) -> None:
        self._pipe: connection.Connection | None = None
        self._process: Any = None
        self._answered = 0

    def close(self) -> None:
        if self._pipe:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._pipe = None

    def _ask(self, step: Callable, content: bytes) -> tuple[str, Any]:
        if self._pipe is None:
            context = multiprocessing.get_context("fork")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_answer, args=(other,), daemon=True)
            self._process.start()
            other.close()
            self._answered = 0
        self._answered += 1
        try:
            self._pipe.send((step, content))
            if not self._pipe.poll(_SECONDS):
                return "hang", f"more than {_SECONDS} s"
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            return "crash", f"exit status {self._process.exitcode}"

    def run(self, step: Callable, content: bytes) -> tuple[str, Any]:
        """Returns what a step came to: result, refused, traceback, hang or crash.

        The last three are the answer of a new child, since in one that ran other
        mutants they might be due to what those left behind.
        """
        used = self._answered > 0
        kind, value = self._ask(step, content)
        if kind in ("traceback", "hang", "crash"):
            self.close()
            if used:
                kind, value = self._ask(step, content)
                self.close()
        elif self._answered >= _STEPS:
            self.close()
        return kind, value


def _differ(a: _Arrays, b: _Arrays) -> bool:
    if [(x.shape, x.dtype) for x in a] != [(x.shape, x.dtype) for x in b]:
        return True
    for x, y in zip(a, b, strict=True):
        if not np.issubdtype(x.dtype, np.floating):
            if not np.array_equal(x, y):
                return True
            continue
        finite = np.isfinite(x)
        bound = 1e-4 * max(1.0, float(np.abs(x[finite]).max(initial=0.0)))
        if not np.allclose(x, y, rtol=1e-4, atol=bound, equal_nan=True):
            return True
    return False


def examine(child: _Child, content: bytes) -> tuple[str, str]:
    """Returns the outcome of a mutant, and what is wrong with it."""
    kind, rewritten = child.run(_rewritten, content)
    if kind != "result":
        return kind, f"translate or fuse: {rewritten}"
    if not rewritten:
        return "refused", ""
    stock_kind, expected = child.run(_stock, content)
    for model in [content, *rewritten]:
        kind, actual = child.run(_ours, model)
        if kind in ("crash", "hang") and stock_kind == kind:
            return "stock fails, too", ""
        if kind in ("crash", "hang", "traceback"):
            return kind, f"Interpreter: {actual}"
        if stock_kind != "result":
            continue
        # A rewritten model that does not run where the mutant does.
        is_lost = kind == "refused"
        if is_lost or _differ(expected, actual):
            if child.run(_is_undefined, content) == ("result", True):
                return "undefined", ""
            if is_lost:
                return "lost", f"Interpreter: {actual}"
            if child.run(_overflows, content) == ("result", True):
                return "stock overflows", ""
            return "different", f"{actual} instead of {expected}"
    return ("equal" if stock_kind == "result" else "only the delegate or none"), ""


_FAILURES = ("crash", "hang", "traceback", "different", "lost")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--executions", type=int, default=2000)
    length.add_argument("--seconds", type=float, help="instead of a number of them")
    parser.add_argument("--first", type=int, default=0, help="index of the first one")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for what fails")
    args = parser.parse_args()
    seeds, child = _seeds(), _Child()
    outcomes: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    for index in itertools.count(args.first):
        elapsed = time.monotonic() - start
        done = index - args.first
        if (
            (done >= args.executions)
            if args.seconds is None
            else (elapsed > args.seconds)
        ):
            break
        content = mutant(seeds, args.seed, index)
        outcome, message = examine(child, content)
        outcomes[outcome] += 1
        if outcome in _FAILURES:
            print(f"mutant {index}: {outcome}: {message}"[:600], flush=True)
            if args.keep:
                (args.keep / f"{outcome}-{args.seed}-{index}.tflite").write_bytes(
                    content
                )
    child.close()
    failures = sum(outcomes[kind] for kind in _FAILURES)
    figures = ", ".join(f"{n} {kind}" for kind, n in sorted(outcomes.items()))
    print(
        f"models: {done} executions, {failures} failures, {elapsed:.0f} s ({figures})"
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
