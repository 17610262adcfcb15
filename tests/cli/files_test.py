"""The commands inspect, fuse and translate, and what all commands have in common."""

import contextlib
import dataclasses
import json
import os
import pathlib
import pty
import socket
import subprocess
import sys
import zipfile
from unittest import mock

import typer
from absl.testing import absltest, parameterized

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.cli.main import app
from ai_edge_rms_norm.tflite import inspection, node_data
from testing.tflite_builder import Builder
from tests.cli.command import run
from tests.pattern_cases import SIZE, WEIGHT, norm, norm_graph

# Options that the page describes once.
_EVERYWHERE = ("--quiet", "-q", "--debug", "--json", "--help", "-h")


def run_in_terminal(columns: int, *arguments) -> str:
    """Runs the command line in a terminal; returns what it shows."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-m", "ai_edge_rms_norm.cli", *map(str, arguments)],
        stdout=terminal,
        stdin=subprocess.DEVNULL,
        env=environment,
    ):
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # EIO is the end of a terminal.
            while piece := os.read(controller, 1 << 16):
                shown += piece
    os.close(controller)
    return shown.decode().replace("\r\n", "\n")


class FilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        builder, y = norm_graph()
        self.content = builder.content(y)
        self.path = self.folder / "norm.tflite"
        self.path.write_bytes(self.content)
        self.output = self.folder / "output.tflite"

    def encodings(self, path) -> list[str]:
        return [op.encoding.value for op in arn.Model.load(path).rms_norm_ops()]

    def test_inspect_lists_decomposed_norms_and_runtimes(self):
        code, text, errors = run("inspect", self.path)
        self.assertEqual((code, errors), (0, ""))
        norm = text.splitlines()[1].split("\t")
        self.assertEqual(norm[1], "decomposed: 6 operators, fusible")
        self.assertEqual(norm[2], str(SIZE))
        self.assertIn("CompiledModel GPU, float16 (the default)\twrong\t1 silent", text)
        self.assertNoCommonElements(text, "│┃─━┏╭…")

    def test_inspect_json(self):
        code, text, _ = run("inspect", self.path, "--json")
        document = json.loads(text)
        self.assertEqual(code, 0)
        self.assertEqual((document["kind"], document["version"]), ("inspect", 1))
        self.assertCountEqual(
            document,
            [
                "kind",
                "version",
                "file",
                "format",
                "models",
                "norms",
                "skipped",
                "runtimes",
            ],
        )
        (norm,) = document["norms"]
        self.assertCountEqual(
            norm,
            [
                "model",
                "signatures",
                "subgraph",
                "operator",
                "encoding",
                "call_target",
                "epsilon",
                "hidden_size",
                "has_weight",
                "shape",
                "dtype",
                "layer",
                "num_operators",
                "reason",
            ],
        )
        self.assertEqual((norm["encoding"], norm["has_weight"]), ("plain", True))
        self.assertEqual(
            {r["runtime"] for r in document["runtimes"]}, {*arn.backends.RUNTIMES}
        )

    @parameterized.parameters(40, 200)
    def test_a_terminal_cuts_nothing(self, columns):
        run("fuse", self.path, self.output, "--for", "gpu")
        text = run_in_terminal(columns, "inspect", self.output)
        self.assertIn("fused: ml_drift", text)
        self.assertIn("CompiledModel CPU with arn.compiled_model.environment", text)
        self.assertNotIn("…", text)
        self.assertNotIn("\x1b", text)

    @parameterized.parameters(
        ("delegate", "custom"),
        ("gpu", "ml_drift"),
        ("npu", "composite"),
        ("any", "decomposed"),
    )
    def test_fuse_for(self, purpose, encoding):
        code, text, errors = run("fuse", self.path, self.output, "--for", purpose)
        self.assertEqual((code, errors), (0, ""))
        self.assertEqual(self.encodings(self.output), [encoding])
        self.assertIn(f"written: 1 norms became {encoding}; 6 operators", text)
        if purpose == "delegate":
            self.assertIn("CompiledModel CPU, stock\tno\t1 not at all", text)
        _, text, _ = run("fuse", self.output, self.folder / "2", "--for", purpose)
        self.assertRegex(
            text, "already fused: all 1|all 1 norms are decomposed already"
        )

    def test_translate_says_what_it_leaves(self):
        code, text, _ = run("translate", self.path, self.output, "--to", "custom")
        self.assertEqual(code, 0)
        self.assertIn("the command fuse takes it", text)
        self.assertEqual(self.output.read_bytes(), self.content)

    def test_output_rules(self):
        code, _, errors = run("fuse", self.path, self.path)
        self.assertEqual(code, 2)
        self.assertIn("it is the input; --in-place", errors)
        code, text, _ = run("fuse", self.path, self.output, "--dry-run")
        self.assertIn("would be written: 1 norms", text)
        self.assertFalse(self.output.exists())
        code, _, errors = run("fuse", self.path, self.folder / "no" / "output.tflite")
        self.assertEqual(code, 2)
        self.assertIn("does not exist", errors)
        self.assertFalse((self.folder / "no").exists())
        self.assertEqual(self.path.read_bytes(), self.content)
        code, text, _ = run("fuse", self.path, self.path, "--in-place")
        self.assertIn(f"{self.path} replaced: 1 norms", text)
        self.assertEqual(self.encodings(self.path), ["custom"])
        _, text, _ = run("fuse", self.path, self.path, "--in-place", "--quiet")
        self.assertEqual(text, "")
        self.assertIn("exclude", run("fuse", "a", "b", "--for=gpu", "--to=custom")[2])

    def test_plain_and_range_safe(self):
        run("fuse", self.path, self.output, "--to", "decomposed")
        code, text, _ = run(
            "fuse", self.output, self.path, "--to", "decomposed", "--plain"
        )
        self.assertEqual(code, 0)
        self.assertIn("replaced: 1 norms became plain", text)
        (norm,) = inspection.inspect(self.path).norms
        self.assertEqual(norm.encoding, "plain")
        command = ("fuse", self.path, self.path, "--in-place", "--to", "decomposed")
        self.assertIn("are decomposed already", run(*command, "--plain")[1])
        self.assertIn("1 norms became decomposed", run(*command)[1])

    def test_left_alone_with_the_reason(self):
        builder = Builder()
        x = builder.input((1, 2, 2, 3, SIZE))
        y = norm(builder, x, builder.constant(WEIGHT))
        self.path.write_bytes(builder.content(y))
        code, text, _ = run("fuse", self.path, self.output, "--for", "gpu")
        self.assertEqual(code, 0)
        self.assertRegex(text, "left alone: .*ml_drift needs x of rank 2 to 4")
        self.assertIn("0 norms became ml_drift, 1 left alone", text)

    def test_a_reader_that_has_enough(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "ai_edge_rms_norm.cli", "inspect", self.path]
        with subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process:
            process.stdout.close()
            self.assertEqual(process.stderr.read(), b"")
        self.assertEqual(process.returncode, 0)

    def test_stdout(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "ai_edge_rms_norm.cli"]
        command += ["fuse", str(self.path), "-"]
        content = subprocess.check_output(command, env=environment)
        self.assertLen(arn.Model(content).rms_norm_ops(), 1)

    def test_bundle(self):
        path, output = self.folder / "model.task", self.folder / "fused.task"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("TF_LITE_PREFILL_DECODE", self.content)
            archive.writestr("TOKENIZER_MODEL", b"tokens")
        _, text, _ = run("inspect", path)
        self.assertIn("TF_LITE_PREFILL_DECODE", text)
        code, _, errors = run("fuse", path, output, "--for", "gpu")
        self.assertEqual((code, errors), (0, ""))
        with zipfile.ZipFile(output) as archive:
            self.assertEqual(archive.read("TOKENIZER_MODEL"), b"tokens")
            model = arn.Model(archive.read("TF_LITE_PREFILL_DECODE"))
        self.assertEqual(model.rms_norm_ops()[0].encoding.value, "ml_drift")

    @parameterized.parameters(
        ("sparse", "expected a .tflite"),
        ("empty", "expected a .tflite"),
        ("text", "expected a .tflite"),
        ("truncated", "a damaged .tflite: "),
        ("missing", "No such file or directory"),
    )
    def test_errors_are_one_line(self, name, cause):
        path = self.folder / f"{name}.tflite"
        if name == "sparse":
            path.touch()
            os.truncate(path, 5 << 30)
        elif name != "missing":
            half = self.content[: len(self.content) // 2]
            path.write_bytes(
                {"empty": b"", "text": b"no model", "truncated": half}[name]
            )
        for arguments in (("inspect", path), ("fuse", path, self.output)):
            code, text, errors = run(*arguments)
            self.assertEqual((code, text), (2, ""))
            self.assertStartsWith(errors, f"error: {path}: {cause}")
            self.assertLen(errors.splitlines(), 1)
        self.assertFalse(self.output.exists())

    def test_usage(self):
        for arguments in (
            ("no_command",),
            ("inspect",),
            ("fuse", "a", "b", "--for", "x"),
        ):
            code, _, errors = run(*arguments)
            self.assertEqual(code, 2)
            self.assertLen(errors.splitlines(), 1)
            self.assertStartsWith(errors, "error: ")
            self.assertNotIn(".;", errors)
        code, text, _ = run("--version")
        self.assertEqual((code, text), (0, f"ai-edge-rms-norm {arn.__version__}\n"))
        names = [*typer.main.get_command(app).commands]
        self.assertEqual(names, sorted(names))
        _, overview, _ = run("-h")
        self.assertNotIn("...", overview.partition("Commands:")[2])
        for command in names:
            code, text, _ = run(command, "-h")
            self.assertEqual(code, 0)
            # Each example is a line of its own.
            self.assertRegex(text, rf"\n +Examples:\n +ai-edge-rms-norm {command}\b")
            self.assertEqual(
                text.count("ai-edge-rms-norm"), text.count("  ai-edge-rms")
            )


class TitleTest(absltest.TestCase):
    def test_reports_leave_out_the_modules_of_classes(self):
        builder, y = norm_graph()
        path = pathlib.Path(self.create_tempdir().full_path, "norm.tflite")
        path.write_bytes(builder.content(y))
        (norm,) = inspection.inspect(path).norms
        for layer, title in (
            ("a.b_c.LlamaModel_model/d.e2.Norm_in;", "LlamaModel_model/Norm_in"),
            ("a.Norm_q;3", "Norm_q;3"),
            ("dense.1/x.Y/v1.2", "dense.1/Y/v1.2"),
            ("model/norm/mul", "model/norm/mul"),
        ):
            renamed = dataclasses.replace(norm, layer=layer)
            self.assertEqual(renamed.title, title)


class GraphTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "norm.tflite"
        builder, y = norm_graph()
        self.path.write_bytes(builder.content(y))

    def test_operators_of_norms_are_named_by_index(self):
        path = self.folder / "norms.json"
        code, text, errors = run("graph", self.path, "-o", path)
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("6 operators of norms", text)
        (entry,) = json.loads(path.read_text()).values()
        self.assertEqual([*entry["results"]], [str(i) for i in range(6)])
        (value,) = {node["value"] for node in entry["results"].values()}
        self.assertRegex(value, r"^norm 1: plain, epsilon [0-9.e-]+$")
        fused = self.folder / "fused.tflite"
        run("fuse", self.path, fused)
        _, text, _ = run("graph", fused, "-o", "-")
        (after,) = json.loads(text).values()
        (node,) = after["results"].values()
        self.assertNotEqual(node["bgColor"], entry["results"]["0"]["bgColor"])

    def test_models_of_a_bundle(self):
        bundle = self.folder / "model.task"
        with zipfile.ZipFile(bundle, "w") as archive:
            for name in ("a/PREFILL", "DECODE"):
                archive.writestr(name, self.path.read_bytes())
        self.assertCountEqual(node_data.node_data(bundle), ["a/PREFILL", "DECODE"])
        code, text, _ = run("graph", bundle, "-o", "-", "--model", "DECODE")
        self.assertEqual((code, len(json.loads(text))), (0, 1))
        for arguments, message in (
            ((), "choose with --model among 'a/PREFILL', 'DECODE'"),
            (("--model", "X"), "no model 'X', but 'a/PREFILL', 'DECODE'"),
        ):
            code, _, errors = run("graph", bundle, "-o", "-", *arguments)
            self.assertEqual(code, 2)
            self.assertIn(message, errors)
        explorer, contents = mock.MagicMock(), []
        config = explorer.config.return_value
        config.add_model_from_path.side_effect = lambda path: contents.append(
            (pathlib.Path(path).name, pathlib.Path(path).read_bytes())
        )
        with mock.patch.dict(sys.modules, {"model_explorer": explorer}):
            code, _, errors = run("graph", bundle, "--serve", "--port", 8099)
        self.assertEqual((code, errors), (0, ""))
        names = ["0_a_PREFILL.tflite", "1_DECODE.tflite"]
        self.assertEqual(contents, [(n, self.path.read_bytes()) for n in names])
        targets = [c.kwargs["model_name"] for c in config.add_node_data.mock_calls]
        self.assertEqual(targets, names)
        explorer.visualize_from_config.assert_called_once_with(
            config, port=8099, no_open_in_browser=True
        )

    def test_a_port_that_is_taken(self):
        taken = socket.create_server(("localhost", 0))
        self.addCleanup(taken.close)
        port = taken.getsockname()[1]
        with mock.patch.dict(sys.modules, {"model_explorer": mock.MagicMock()}):
            code, text, errors = run("graph", self.path, "--serve", "--port", port)
        self.assertEqual((code, text), (2, ""))
        self.assertEqual(errors, f"error: --port: {port} is in use\n")

    def test_a_package_that_ends_the_process(self):
        explorer = mock.MagicMock()
        explorer.visualize_from_config.side_effect = SystemExit(1)
        with mock.patch.dict(sys.modules, {"model_explorer": explorer}):
            code, _, errors = run("graph", self.path, "--serve")
        self.assertEqual(code, 2)
        self.assertEqual(errors, "error: a package ends with SystemExit(1)\n")

    def test_what_it_refuses(self):
        for arguments, message in (
            ((), "give -o FILE.json, --serve"),
            (("-o", self.folder / "g.html"), "does not write HTML"),
            (("--serve",), "pip install ai-edge-model-explorer"),
        ):
            # None makes the import fail, as if the package was missing.
            with mock.patch.dict(sys.modules, {"model_explorer": None}):
                code, _, errors = run("graph", self.path, *arguments)
            self.assertEqual(code, 2)
            self.assertIn(message, errors)
            self.assertLen(errors.splitlines(), 1)


class DocumentTest(absltest.TestCase):
    def test_the_page_names_every_command_and_option(self):
        page = (pathlib.Path(__file__).parents[2] / "docs/cli.md").read_text()
        group = typer.main.get_command(app)
        self.assertNotEmpty(group.commands)
        for name, command in group.commands.items():
            start = page.find(f"\n### {name}\n")
            self.assertGreaterEqual(start, 0, f"no heading for {name}")
            section = page[start + 1 :].partition("\n##")[0]
            for parameter in command.params:
                for option in (*parameter.opts, *parameter.secondary_opts):
                    if option.startswith("-") and option not in _EVERYWHERE:
                        self.assertRegex(section, rf"[` ]{option}[`| =]", name)


class Int8Test(absltest.TestCase):
    def test_an_integer_norm_is_left_alone_with_the_reason(self):
        builder, y = norm_graph()
        for tensor in builder.subgraph.tensors:
            if tensor.type == 0:  # FLOAT32
                tensor.type = 9  # INT8
        path = pathlib.Path(self.create_tempdir().full_path) / "int8.tflite"
        path.write_bytes(builder.content(y))
        _, text, _ = run("inspect", path)
        self.assertRegex(text, "left alone: .*int8")


if __name__ == "__main__":
    absltest.main()
