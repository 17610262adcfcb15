"""A rule that builds the wheel of the project."""

def _wheel_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    package = [
        file
        for target in ctx.attr.package
        for file in target[DefaultInfo].data_runfiles.files.to_list() + target[DefaultInfo].files.to_list()
        if file.short_path.startswith("python/") and
           (ctx.attr.delegate or "/_native/" not in file.short_path)
    ]
    args = ctx.actions.args()
    args.add("--out", out.path)
    inputs = depset(package + ctx.files.srcs)
    for file in inputs.to_list():
        args.add("{}={}".format(file.short_path, file.path))
    ctx.actions.run(
        arguments = [args],
        executable = ctx.executable._build_wheel,
        inputs = inputs,
        mnemonic = "Wheel",
        outputs = [out],
        progress_message = "Building the wheel",
        # Bazel 4 starts Python programs through `env python`.
        use_default_shell_env = True,
    )
    return [DefaultInfo(
        files = depset([out]),
        runfiles = ctx.runfiles([out]),
    )]

wheel = rule(
    implementation = _wheel_impl,
    attrs = {
        "delegate": attr.bool(
            default = True,
            doc = "Whether the wheel holds the delegate; without it, it is for any platform.",
        ),
        "package": attr.label_list(
            doc = "The py_library, with the shared libraries as its data.",
            mandatory = True,
        ),
        "srcs": attr.label_list(
            allow_files = True,
            doc = "Files of the project's root: pyproject.toml and what it names.",
        ),
        "_build_wheel": attr.label(
            cfg = "exec",
            default = "//python:build_wheel",
            executable = True,
        ),
    },
    doc = "Builds the wheel into a folder of this name; its file name has the platform.",
)
