r"""Lowers the operators of `ai_edge_rms_norm.ops.rms_norm` to `stablehlo.custom_call`.

Importing this module registers the lowerings with the front end, so that, for example,
`litert_torch.convert` accepts the operators, too.

The custom call uses api_version 1 (a string backend_config; StableHLO
specification, section custom_call), because exporters to .tflite accept no other:

    stablehlo.custom_call @ai_edge_torch.rms_norm(%x, %weight) {
        api_version = 1 : i32, backend_config = "{\"epsilon\": 1e-06}",
        has_side_effect = false}
"""

from typing import Any

import torch

import ai_edge_rms_norm.ops.rms_norm  # noqa: F401  Defines the operators.
from ai_edge_rms_norm.conversion.torch_frontend import FRONT_END
from ai_edge_rms_norm.tflite import op_options

__all__: list[str] = []


def _custom_call(
    call_target_name: str,
    operands: list[Any],
    num_results: int,
    epsilon: float,
) -> Any:
    """Emits the call; every result has the type of the first operand.

    Raises:
      TypeError: x is not of a type that a .tflite can have.
    """
    ir = FRONT_END.ir
    x_type = ir.RankedTensorType(operands[0].type)
    element_types = (ir.F32Type.get(), ir.F16Type.get(), ir.BF16Type.get())
    if x_type.element_type not in element_types:
        raise TypeError(
            f"{call_target_name}: x must be f32, f16 or bf16 in a .tflite, got {x_type}"
        )
    return FRONT_END.stablehlo.custom_call(
        [x_type] * num_results,
        [operand for operand in operands if operand is not None],
        call_target_name,
        has_side_effect=False,
        backend_config=ir.StringAttr.get(op_options.encode_backend_config(epsilon)),
        api_version=ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 1),
    )


@FRONT_END.lower(torch.ops.ai_edge_torch.custom_rms_norm)
def _lower_rms_norm(lctx: Any, x: Any, weight: Any, epsilon: float = 1e-6) -> Any:
    return _custom_call(op_options.RMS_NORM, [x, weight], 1, epsilon)


@FRONT_END.lower(torch.ops.ai_edge_torch.custom_add_rms_norm)
def _lower_add_rms_norm(
    lctx: Any, x: Any, residual: Any, weight: Any, epsilon: float = 1e-6
) -> Any:
    return _custom_call(op_options.ADD_RMS_NORM, [x, residual, weight], 2, epsilon)
