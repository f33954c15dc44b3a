"""What Schemathesis must know of this gateway; loaded by it, in its own environment, by SCHEMATHESIS_HOOKS."""

import re

import schemathesis

# What an inference may be refused for though its document allows it: no schema puts a tensor's elements beside its
# shape, its bytes behind the JSON, or a key twice; and the whole port's document knows no model's tensors.
REASONS = re.compile(
    "|".join(
        (
            r"has \d+ elements, but its shape",
            r"^unexpected shape for input",
            r"too many elements",
            r"nested otherwise than its shape",
            r"begins flat and then nests",
            r"has an element that is no (FP32|FP64|INT64)",
            r"has a number out of range",
            r"must set only one of the following fields",
            r"^parameter '",
            r"^parameter keys starting with 'triton_'",
            r"^'parameters' ",
            r"trailing bytes belong to no input",
            r"additional bytes for model",
            r"shared memory is not supported",
            r"is asked for twice",
            r"is given twice",
            r"a number that no datatype holds",
            r"is not Unicode|not valid JSON",
            r"printable ASCII",
            r"data via JSON is not supported",
        )
    )
)
OF_A_PLAN = re.compile(r"^plan: steps ")  # which must rise
OF_NO_MODEL = re.compile(r"^unexpected inference (input|output)|^expected \d+ inputs|data-type is '|^unexpected shape")


MODEL = "bike-demand"
ROW = {"name": "features", "shape": [1, 6], "datatype": "FP32", "data": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]}
TENSOR = {"name", "shape", "datatype", "data"}


@schemathesis.hook
def map_body(context, body):
    """Write whole numbers whole: 2.0 is an integer to JSON Schema, and none to those who read versions and rows.

    Where what was made up is as it should be, put in its place what the gateway has, most of the time: what is refused
    for its tensor or for a model that is not there tells nothing about the rest.
    """
    body = _whole(body)
    if not isinstance(body, dict) or len(str(body)) % 3 == 0:
        return body
    path = context.operation.path
    if path.endswith("/infer") and _are_tensors(body.get("inputs")):
        body["inputs"] = [ROW]
    if path.endswith("/rollouts") and isinstance(body.get("model"), str) and body["model"]:
        body["model"] = MODEL
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Ask the admin API for the model that is there, most of the time."""
    if context.operation.path.startswith("/api/v1/") and isinstance(path_parameters, dict):
        model = path_parameters.get("model")
        if isinstance(model, str) and len(model) % 3:
            path_parameters["model"] = MODEL
    return path_parameters


def _are_tensors(inputs):
    return (
        isinstance(inputs, list)
        and bool(inputs)
        and all(
            isinstance(each, dict)
            and set(each) == TENSOR
            and isinstance(each["name"], str)
            and isinstance(each["datatype"], str)
            and isinstance(each["data"], list)
            and isinstance(each["shape"], list)
            and all(type(axis) is int and 0 <= axis < 2**31 for axis in each["shape"])
            for each in inputs
        )
    )


def _whole(value):
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


@schemathesis.check
def refused_for_what_no_schema_says(ctx, response, case):
    """An inference, or the start of a rollout, that is as its document says is refused for these reasons only."""
    meta = case.meta
    if response.status_code != 400 or meta is None or meta.generation.mode.value != "positive":
        return
    text = response.json()["error"]
    if case.path.endswith("/infer"):
        assert REASONS.search(text) or ("{model}" in case.path and OF_NO_MODEL.search(text)), text
    elif case.path.endswith("/rollouts"):
        assert OF_A_PLAN.search(text), text
