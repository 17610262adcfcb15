"""The public names of the package; each stands here, and nowhere else.

Type checkers follow these imports. At run time the package only reads where a name is
defined (`__init__.py`) and imports that module when the name is first used.
"""

from ai_edge_rms_norm import backends as backends
from ai_edge_rms_norm.conversion.converter import Converter as Converter
from ai_edge_rms_norm.conversion.converter import convert as convert
from ai_edge_rms_norm.conversion.converter import signature as signature
from ai_edge_rms_norm.ops.nn import RMSNorm as RMSNorm
from ai_edge_rms_norm.ops.replace import ReplacedModule as ReplacedModule
from ai_edge_rms_norm.ops.replace import ReplaceReport as ReplaceReport
from ai_edge_rms_norm.ops.replace import SkippedModule as SkippedModule
from ai_edge_rms_norm.ops.replace import replace_rms_norm as replace_rms_norm
from ai_edge_rms_norm.ops.rms_norm import add_rms_norm as add_rms_norm
from ai_edge_rms_norm.ops.rms_norm import rms_norm as rms_norm
from ai_edge_rms_norm.runtime import compiled_model as compiled_model
from ai_edge_rms_norm.runtime.check import CheckedNorm as CheckedNorm
from ai_edge_rms_norm.runtime.check import CheckReport as CheckReport
from ai_edge_rms_norm.runtime.check import check as check
from ai_edge_rms_norm.runtime.interpreter import Interpreter as Interpreter
from ai_edge_rms_norm.runtime.interpreter import delegate_path as delegate_path
from ai_edge_rms_norm.runtime.interpreter import kernel_variant as kernel_variant
from ai_edge_rms_norm.runtime.interpreter import kernel_variants as kernel_variants
from ai_edge_rms_norm.runtime.model import Model as Model
from ai_edge_rms_norm.runtime.model import fuse as fuse
from ai_edge_rms_norm.tflite.encoding import Encoding as Encoding
from ai_edge_rms_norm.tflite.encoding import RmsNormOp as RmsNormOp
from ai_edge_rms_norm.tflite.encoding import find_ops as find_ops
from ai_edge_rms_norm.tflite.encoding import translate as translate
from ai_edge_rms_norm.tflite.fuse import FusedNorm as FusedNorm
from ai_edge_rms_norm.tflite.fuse import FusionReport as FusionReport
from ai_edge_rms_norm.tflite.fuse import SkippedNorm as SkippedNorm
