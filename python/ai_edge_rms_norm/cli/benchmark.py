"""`ai-edge-rms-norm benchmark`."""

import contextlib
import dataclasses
import pathlib
from typing import Annotated, Any

import typer

from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.cli.compare import timing_row
from ai_edge_rms_norm.cli.rewrite import check_output
from ai_edge_rms_norm.runtime import benchmark as benchmark_lib
from ai_edge_rms_norm.runtime import pictures, profiler
from ai_edge_rms_norm.runtime.interpreter import kernel_variant

_COLUMNS = ("signature", "model", "median ms", "quartiles ms", "ratio", "quartiles")
_PROFILE = ("signature", "model", "operators", "median ms", "quartiles ms", "share")
_NOTES = {
    "difference of calls": "norms run operator by operator; their time is what the"
    " call takes more than with them fused",
    "difference of kinds": "norms run operator by operator; their time is what the"
    " kinds take more than with them fused, up to a microsecond per operator left out",
}
_SMALLEST_SHARE = 1e-3  # Of kinds with a row of their own.


def _profiles(
    models: list[pathlib.Path], counts: list[int], decomposed: bool, seconds: float
) -> dict[str, dict[str, profiler.Profile]]:
    result: dict[str, dict[str, profiler.Profile]] = {}
    for count in counts:
        for model in models:
            with errors.about(model), output.stage(f"Profiling {model}"):
                profiles = profiler.profile_model(
                    model, threads=count, fuse_decomposed=decomposed, seconds=seconds
                )
            name = benchmark_lib.run_name(model, count)
            for signature, profile in profiles.items():
                result.setdefault(signature, {})[name] = profile
    return result


def _profile_rows(profile: profiler.Profile) -> list[list[str]]:
    total = profile.seconds.median

    def row(name: str, median: float, quartiles: str = "") -> list[str]:
        return [name, f"{median * 1e3:.4f}", quartiles, f"{median / total:.1%}"]

    def spread_row(name: str, spread: profiler.Spread) -> list[str]:
        quartiles = f"{spread.low * 1e3:.4f} to {spread.high * 1e3:.4f}"
        return row(name, spread.median, quartiles)

    rows, others = [], []
    for kind in profile.kinds:
        if kind.is_norm or kind.seconds.median >= _SMALLEST_SHARE * total:
            name = f"{'norm: ' * kind.is_norm}{kind.count} x {kind.kind}"
            rows.append(spread_row(name, kind.seconds))
        else:
            others.append(kind.seconds.median)
    if others:
        rows.append(row(f"{len(others)} other kinds", sum(others)))
    return [
        *rows,
        spread_row("not in an operator", profile.unattributed),
        spread_row("all norms", profile.norms),
        spread_row("everything else", profile.rest),
        spread_row("the call", profile.seconds),
    ]


def _print_profiles(profiles: dict[str, dict[str, profiler.Profile]]) -> None:
    rows = [
        [signature, name, *row]
        for signature, of_signature in profiles.items()
        for name, profile in of_signature.items()
        for row in _profile_rows(profile)
    ]
    output.table(_PROFILE, rows)
    for signature, of_signature in profiles.items():
        for name, profile in of_signature.items():
            if profile.norms_by in _NOTES:
                output.summary(f"{signature}, {name}: {_NOTES[profile.norms_by]}")


@app.command
def benchmark(
    models: Annotated[list[pathlib.Path], typer.Argument(help="One or more .tflite.")],
    threads: Annotated[
        str, typer.Option(help="Numbers of threads, as in 1 or 1,2.")
    ] = "1",
    decomposed: Annotated[
        bool, typer.Option("--decomposed", help="Fuse decomposed norms at run time.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time per signature.")] = 1.0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time the operators by kind, too.")
    ] = False,
    png: Annotated[
        pathlib.Path | None, typer.Option(help="Draw the medians and quartiles.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Time models on random input (zeros for integers), in interleaved rounds.

    Ratios refer to the first model with the first number of threads, round by round.
    --profile reads LiteRT's profiler: norms on the kernels, everything else by kind.

    Examples:
      ai-edge-rms-norm benchmark model.tflite --threads 1,2
      ai-edge-rms-norm benchmark model.tflite fused.tflite --seconds 5
      ai-edge-rms-norm benchmark model.tflite --profile
      ai-edge-rms-norm benchmark model.tflite fused.tflite --png times.png
    """
    if png is not None:
        check_output(png)
        with errors.about(png):
            pictures.new_figure(1, 1)  # Not only after the measurement.
    counts = options.numbers("--threads", threads)
    models = list(dict.fromkeys(models))
    # Of several, the errors name the one.
    about = errors.about(models[0]) if len(models) == 1 else contextlib.nullcontext()
    with about, output.stage("Measuring"):
        result = benchmark_lib.benchmark(
            models,
            threads=counts,
            fuse_decomposed=decomposed,
            seconds=seconds,
        )
    if png is not None:
        with errors.about(png):
            benchmark_lib.plot(result, png)
    profiles = _profiles(models, counts, decomposed, seconds) if profile else {}
    if json:
        timings = {
            signature: {name: vars(timing) for name, timing in of_signature.items()}
            for signature, of_signature in result.items()
        }
        data: dict[str, Any] = {
            "kernel_variant": kernel_variant(),
            "seconds_per_call": timings,
        }
        if profile:
            data["profile"] = {
                signature: {n: dataclasses.asdict(p) for n, p in of_signature.items()}
                for signature, of_signature in profiles.items()
            }
        output.print_json("benchmark", data)
        return
    rows = [
        [signature, *timing_row(name, timing)]
        for signature, of_signature in result.items()
        for name, timing in of_signature.items()
    ]
    output.table(_COLUMNS, rows)
    if profile:
        print()
        _print_profiles(profiles)
    output.summary(f"kernel variant {kernel_variant()}")
