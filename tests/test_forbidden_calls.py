"""The source calls nothing that runs, unpickles or unpacks what a file or the network brings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("rag_jax", "launch", "configs") for path in (ROOT / folder).rglob("*.py")
)
# Modules that run code from what they load, or cannot be told not to.
MODULES = {
    "_pickle",
    "cloudpickle",
    "cPickle",
    "dill",
    "imp",
    "joblib",
    "marshal",
    "pickle",
    "runpy",
    "shelve",
    "torch",
    "yaml",
}
NAMES = {"__import__", "compile", "eval", "exec"}
YAML = {"safe_load", "YAMLError"}  # all that may be used of it
# Methods and functions by their last name, whatever they are called on.
ATTRIBUTES = {
    "execv",
    "extract",
    "extractall",
    "import_module",
    "popen",
    "spawnv",
    "system",
    "unpack_archive",
}
# Keywords that must not be given, or not with this value.
KEYWORDS = {"trust_remote_code": None, "shell": None, "allow_pickle": True, "verify": False}
ALLOWED = {
    # Imports a system's modules; `find_system` looks the name up in this package's own table.
    "rag_jax/systems/__init__.py": ["calls import_module"],
    # Takes the text out of a web page; nothing is unpacked.
    "rag_jax/data/formats/document_files.py": ["calls extract"],
    # Reads the settings before a page, by `safe_load` alone (see `YAML`).
    "rag_jax/data/formats/markdown_text.py": ["imports yaml"],
    # Imports a command's module, by a name in its own table or in a script of `launch/`.
    "rag_jax/commands/main.py": ["calls import_module"],
    # Reads the presets of the config files that come with the package.
    "rag_jax/commands/list_configs.py": ["imports runpy"],
}


def find_forbidden(source):
    """Line and reason of everything that is forbidden in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            modules += [alias.name for alias in node.names if alias.name in ATTRIBUTES]
        for module in modules:
            if module.split(".")[0] in MODULES or module in ATTRIBUTES:
                found.append((node.lineno, f"imports {module}"))
        if isinstance(node, ast.Call):
            found += [(node.lineno, reason) for reason in find_in_call(node)]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml":
            found += [(node.lineno, f"uses yaml.{node.attr}")] * (node.attr not in YAML)
        if isinstance(node, ast.Attribute) and node.attr == "Environment":
            found.append((node.lineno, "a jinja environment that is no sandbox"))
    return found


def find_in_call(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else None
    on = call.func.value.id if name and isinstance(call.func.value, ast.Name) else ""
    if isinstance(call.func, ast.Name):
        if call.func.id in NAMES:
            yield f"calls {call.func.id}"
        if call.func.id == "Environment":
            yield "a jinja environment that is no sandbox"
    if name in ATTRIBUTES:
        yield f"calls {name}"
    given = {k.arg: k.value for k in call.keywords}
    if on in ("np", "numpy") and name == "save" and "allow_pickle" not in given:
        yield "np.save pickles objects unless told not to"
    for keyword, forbidden in KEYWORDS.items():
        value = given.get(keyword)
        if value is None:
            continue
        # What isn't written out could be anything, but a setting that pip gives for `verify`.
        is_open = not isinstance(value, ast.Constant) and keyword != "verify"
        if forbidden is None or is_open or getattr(value, "value", None) is forbidden:
            yield f"{keyword}={ast.unparse(value)}"


def test_sources():
    found = {}
    for path in SOURCES:
        reasons = find_forbidden(path.read_text("utf-8"))
        allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), [])
        if left := [(line, reason) for line, reason in reasons if reason not in allowed]:
            found[str(path.relative_to(ROOT))] = left
    assert len(SOURCES) > 80 and found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import yaml.reader",
        "from os import system",
        "eval(x)",
        "exec(x, {})",
        "compile(x, '', 'exec')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "np.save(path, x)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "archive.extractall(folder)",
        "tarfile.open(x).extract(y)",
        "shutil.unpack_archive(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "importlib.import_module(x)",
        "requests.get(x, verify=False)",
        "jinja2.Environment()",
        "Environment()",
        "load = yaml.unsafe_load",
    ],
)
def test_what_is_forbidden_is_found(source):
    assert len(find_forbidden(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "re.compile(x)",
        "lowered.compile()",
        "ast.literal_eval(x)",
        "np.load(path)",
        "np.save(path, x, allow_pickle=False)",
        "subprocess.run([x])",
        "ImmutableSandboxedEnvironment()",
        "yaml.safe_load(x)",
        "archive.open(name)",
        "requests.get(x, verify=place['verify'])",
    ],
)
def test_what_is_allowed_is_not(source):
    assert find_forbidden(source) == []
