"""The patches apply, without fuzz, to the pinned release."""

import pathlib
import tarfile

from absl import flags
from absl.testing import absltest

from third_party.tensorflow import source

_ARCHIVE = flags.DEFINE_string("archive", None, "The release, or why it is missing.")
_SHA256 = flags.DEFINE_string("sha256", None, "SHA-256 of the release.")
_PATCHES = flags.DEFINE_multi_string("patch", [], "Patches, in order.")


class PatchAppliesTest(absltest.TestCase):
    def _tree(self) -> pathlib.Path:
        return pathlib.Path(self.create_tempdir().full_path)

    def test_applies_to_the_release(self):
        archive = pathlib.Path(_ARCHIVE.value)
        try:
            source.check_archive(archive, _SHA256.value)
        except source.MissingArchiveError as error:
            self.skipTest(str(error))
        tree = self._tree()
        patches = [pathlib.Path(patch) for patch in _PATCHES.value]
        wanted = {f for p in patches for f in source.changed_files(p.read_text())}
        with tarfile.open(archive) as tar:
            for member in tar:
                _, _, name = member.name.partition("/")
                if name in wanted:
                    path = tree / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(tar.extractfile(member).read())
        for patch in patches:
            source.apply(patch, tree)

    def test_is_well_formed(self):
        # On files that consist of the context lines alone, at their places.
        for patch in map(pathlib.Path, _PATCHES.value):
            tree = self._tree()
            text = patch.read_text()
            for file in source.changed_files(text):
                lines = {}
                for start, body in source.hunks(text, file):
                    old = [line[1:] for line in body if line[0] in " -"]
                    lines.update(enumerate(old, start))
                path = tree / file
                path.parent.mkdir(parents=True, exist_ok=True)
                # Unlike any context line, so that every hunk has one place.
                path.write_text(
                    "".join(
                        f"{lines.get(i, f'// {i}')}\n" for i in range(1, max(lines) + 9)
                    )
                )
            self.assertNotIn("offset", source.apply(patch, tree))

    def test_other_source_is_refused(self):
        for patch in map(pathlib.Path, _PATCHES.value):
            tree = self._tree()
            for file in source.changed_files(patch.read_text()):
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                (tree / file).write_text("int other;\n" * 9999)
            with self.assertRaisesRegex(RuntimeError, "does not apply"):
                source.apply(patch, tree)


if __name__ == "__main__":
    absltest.main()
