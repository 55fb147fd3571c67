"""Looks for a reward function without running the code of its module, before a model is loaded.

    python3 find_function.py FUNCTION        # MODULE:NAME or FILE.py:NAME, as for rewards.py

Prints two lines, what is wrong and what to do; or nothing, if the function exists or only running the module would tell.
(Finding PACKAGE.MODULE runs the package's __init__.py, as an import does.)
"""
import ast
import importlib.util
import os
import sys

# Code with one of these names may define names that its text does not show.
DYNAMIC = {"*", "__getattr__", "exec", "globals", "locals", "setattr", "vars"}
INSTALL = "install it, or add its folder to PYTHONPATH"


def defined_names(tree):
    """The names that a module defines outside of functions and classes, and some names that it only uses."""
    names, pending = set(), list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        pending.extend(ast.iter_child_nodes(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            names.update(node.names)
    return names


def problem(function):
    source, _, name = function.rpartition(":")
    file = source
    if not source.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            spec = importlib.util.find_spec(source)
        except ModuleNotFoundError as e:
            return f"there is no module {e.name}", INSTALL
        if spec is None:
            return f"there is no module {source}", INSTALL
        file = spec.origin or ""
        if not file.endswith(".py"):
            return None
    try:
        with open(file, "rb") as text:
            tree = ast.parse(text.read())
    except SyntaxError as e:
        return f"{file}:{e.lineno}: {type(e).__name__}: {e.msg}", "correct the file"
    names = defined_names(tree)
    if name in names or names & DYNAMIC:
        return None
    functions = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return f"{file} has no function {name}", "give one that it has: " + (", ".join(functions[:10]) or "none")


print("\n".join(problem(sys.argv[1]) or ()))
