"""The private interfaces of litert-torch that this package uses, and their use."""

import inspect
import threading
from unittest import mock

import torch
from absl.testing import absltest

from ai_edge_rms_norm.conversion.torch_frontend import (
    FRONT_END,
    Signature,
    interface,
    litert_torch,
)


def _signature(name: str = "main") -> Signature:
    return Signature(name, torch.nn.ReLU().eval(), (torch.ones(2, 4),))


class TorchFrontendTest(absltest.TestCase):
    def test_is_litert_torch(self):
        self.assertIsInstance(FRONT_END, litert_torch.LitertTorch)

    def test_private_interfaces(self):
        """Fails when litert-torch changes what the module names as private."""
        for function, parameters in (
            (
                litert_torch.core.export_torch_signature,
                "sig strict_export run_decompositions",
            ),
            (litert_torch.core._run_convert_passes, "exported_program"),
            (
                litert_torch.signature_lib.Signature,
                "name module sample_args sample_kwargs dynamic_shapes",
            ),
            (
                litert_torch.export.exported_program_to_mlir,
                "exported_program ir_context lowering_context_plugins _pre_lower_pass"
                " inline_constants",
            ),
            (litert_torch.export_utils.flat_dict_names, "tree_specs context"),
            (litert_torch.lowerings.lower, "op"),
        ):
            with self.subTest(function.__name__):
                self.assertEqual(
                    " ".join(inspect.signature(function).parameters), parameters
                )

    def test_lowered_module(self):
        """Has what `Lowered` says, parameters as arguments, and is VHLO bytecode."""
        module = torch.nn.Linear(4, 3, bias=False).eval()
        rows = {0: torch.export.Dim("rows")}
        signature = Signature("main", module, (torch.ones(2, 4),), {}, (rows,))
        lowered = FRONT_END.lower_to_stablehlo(FRONT_END.export(signature))
        for name in interface.Lowered.__annotations__:
            self.assertTrue(hasattr(lowered, name), name)
        arguments = {
            s.input_spec.name if s.input_spec.is_parameter else s.input_spec.i: s
            for s in lowered.input_signature
        }
        self.assertCountEqual(arguments, ["weight", 0])
        self.assertIsInstance(arguments[0].shape[0], torch.SymInt)
        self.assertEqual(arguments[0].dtype, torch.float32)
        torch.testing.assert_close(lowered.state_dict["weight"], module.weight.detach())
        # Bytecode of MLIR: 0x4D 0x4C 0xEF 0x52.
        self.assertStartsWith(FRONT_END.serialize_vhlo(lowered), b"ML\xefR")

    def test_names(self):
        x = torch.ones(2)
        signature = Signature("main", torch.nn.Identity(), (x, [x, x]), {"y": {"a": x}})
        self.assertEqual(
            FRONT_END.input_names(signature), ["args_0", "args_1_0", "args_1_1", "y_a"]
        )

    def test_pass_runs_on_every_signature(self):
        programs = []
        FRONT_END.convert([_signature("a"), _signature("b")], programs.append)
        self.assertLen(programs, 2)
        self.assertIsInstance(programs[0], torch.export.ExportedProgram)

    def test_pass_does_not_run_in_other_threads(self):
        programs, others = [], []

        def transform(program):
            programs.append(program)
            thread = threading.Thread(
                target=lambda: others.append(
                    litert_torch.core.export_torch_signature(_signature())
                )
            )
            thread.start()
            thread.join()

        FRONT_END.convert([_signature()], transform)
        self.assertLen(programs, 1)
        self.assertLen(others, 1)

    def test_pass_that_litert_torch_does_not_run_is_an_error(self):
        original = litert_torch.core.export_torch_signature
        with (
            mock.patch.object(litert_torch.litert_torch.Converter, "convert"),
            self.assertRaisesRegex(RuntimeError, "ran on 0 of 1 signatures"),
        ):
            FRONT_END.convert([_signature()], print)
        self.assertIs(litert_torch.core.export_torch_signature, original)


if __name__ == "__main__":
    absltest.main()
