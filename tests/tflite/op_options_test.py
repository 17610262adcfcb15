"""The options of the operators: what is accepted, and that C++ accepts the same."""

import random
import struct
import subprocess
import sys

from absl import flags
from absl.testing import absltest, parameterized
from flatbuffers import flexbuffers

from ai_edge_rms_norm.tflite import op_options
from tests.tflite import corpus

_READER = flags.DEFINE_string(
    "options_reader", None, "//fuzz:rms_norm_options_reader; not compared without it"
)
_SEED, _MUTATIONS = 15, 20000


def mutations(rng: random.Random, count: int):
    """Yields damaged option buffers: other bytes, bits, lengths and order."""
    seeds = [
        op_options.encode_custom_options(1e-6),
        flexbuffers.Dumps({"epsilon": 1e-5}),
        flexbuffers.Dumps({"epsilon": 1}),
        flexbuffers.Dumps({"epsilon": 1e-5, "axis": 1}),
        flexbuffers.Dumps({"epsilon": [1, 2, 3]}),
        flexbuffers.Dumps({"epsilon": "1e-5"}),
        flexbuffers.Dumps([1e-5]),
        flexbuffers.Dumps({}),
        *CORPUS.values(),
    ]
    yield from (*seeds, corpus.shared_vectors())
    for _ in range(count):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            if not content:
                break
            kind, at = rng.randrange(5), rng.randrange(len(content))
            if kind == 0:
                content[at] = rng.randrange(256)
            elif kind == 1:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                del content[at : at + rng.randint(1, 8)]
            elif kind == 3:
                content[at:at] = bytes(rng.randrange(12) for _ in range(3))
            else:  # The offsets to everything else, at the end.
                content[-rng.randint(1, min(3, len(content)))] = rng.randrange(48)
        yield bytes(content)


def indirect(kind: int, value: bytes) -> bytes:
    """{"epsilon": value}, which the map refers to."""
    head = value + b"epsilon\0"
    keys = bytes([1, len("epsilon\0") + 1])
    content = head + keys
    content += bytes([1, 1, 1])  # Offset and width of the keys, number of values.
    content += bytes([len(content), kind << 2 | {1: 0, 2: 1, 4: 2, 8: 3}[len(value)]])
    return content + bytes([2, 9 << 2, 1])


CORPUS = {
    "indirect_int": indirect(6, b"\x02"),
    "indirect_uint": indirect(7, b"\x02\x01"),
    "indirect_float": indirect(8, struct.pack("<f", 0.5)),
    "indirect_double": indirect(8, struct.pack("<d", 1e-6)),
}


class CustomOptionsTest(parameterized.TestCase):
    @parameterized.parameters(1e-6, 1e-5, 0.1, 1e-60, 1.0, 1e300, 5e-324)
    def test_round_trip(self, epsilon):
        content = op_options.encode_custom_options(epsilon)
        self.assertEqual(op_options.decode_custom_options(content), epsilon)

    @parameterized.parameters(
        (flexbuffers.Dumps({"epsilon": 2}), 2.0),
        (CORPUS["indirect_int"], 2.0),
        (CORPUS["indirect_uint"], 258.0),
        (CORPUS["indirect_float"], 0.5),
        (CORPUS["indirect_double"], 1e-6),
    )
    def test_other_numbers(self, content, epsilon):
        self.assertEqual(op_options.decode_custom_options(bytes(content)), epsilon)

    @parameterized.parameters(
        ({"epsilon": 1e-6, "axis": 1}, "unknown key 'axis'"),
        ({"axis": 1}, "unknown key 'axis'"),
        ({}, "epsilon is missing"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": -1}, "epsilon is -1"),
        ({"epsilon": float("inf")}, "epsilon is inf"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"epsilon": "1e-6"}, "epsilon is not a number"),
        ({"epsilon": True}, "epsilon is not a number"),
        (1e-6, "not a map"),
    )
    def test_refused(self, value, message):
        with self.assertRaisesRegex(ValueError, f"custom_options.*{message}"):
            op_options.decode_custom_options(bytes(flexbuffers.Dumps(value)))

    def test_shared_vectors_are_not_unpacked(self):
        with self.assertRaisesRegex(ValueError, "unknown key 'nested'"):
            op_options.decode_custom_options(corpus.shared_vectors())

    def test_same_as_the_delegate(self):
        """Neither side accepts what the other refuses, nor reads another epsilon."""
        if _READER.value is None:
            self.skipTest("--options_reader is not given")
        buffers = list(mutations(random.Random(_SEED), _MUTATIONS))
        stdin = b"".join(struct.pack("<I", len(b)) + b for b in buffers)
        result = subprocess.run(
            [_READER.value], input=stdin, stdout=subprocess.PIPE, check=True
        )
        lines = result.stdout.decode(errors="replace").split("\n")
        accepted, differences = 0, []
        lines = [line for line in lines if line.startswith(("0x", "error: "))]
        self.assertLen(lines, len(buffers))
        for content, line in zip(buffers, lines, strict=True):
            try:
                ours = op_options.decode_custom_options(content)
                accepted += 1
            except ValueError:
                ours = None
            theirs = None if line.startswith("error: ") else float.fromhex(line)
            if ours != theirs:
                differences.append((content, ours, line))
        print(f"{len(buffers)} buffers, {accepted} accepted", file=sys.stderr)
        self.assertEmpty(differences)
        self.assertGreater(accepted, 500)


class BackendConfigTest(parameterized.TestCase):
    def test_round_trip(self):
        for epsilon in (1e-6, 5e-324, 1.7976931348623157e308):
            text = op_options.encode_backend_config(epsilon)
            self.assertEqual(op_options.decode_backend_config(text), epsilon)

    @parameterized.parameters(
        ('{"epsilon": 1e-6, "axis": 1}', "unknown key 'axis'"),
        ('{"epsilon": 1e-6, "epsilon": 1e-5}', "epsilon more than once"),
        ("{}", "epsilon is missing"),
        ("[1]", "got"),
        ("", "not JSON"),
        ("[" * 100000, "not JSON"),
        ('{"epsilon": ' + "9" * 400 + "}", "epsilon is inf"),
        ('{"epsilon": true}', "epsilon is True"),
        ('{"epsilon": null}', "epsilon is None"),
        ('{"epsilon": NaN}', "epsilon is nan"),
        ('{"epsilon": {"a": 1}}', "epsilon is"),
    )
    def test_refused(self, text, message):
        with self.assertRaisesRegex(ValueError, f"backend_config.*{message}"):
            op_options.decode_backend_config(text)


if __name__ == "__main__":
    absltest.main()
