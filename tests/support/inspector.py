"""What an engine's own inspector says of its layers."""

import json


def precisions(information: str) -> tuple[int, int]:
    """How many layers put out half, and how many half or float32: the others move integers and shapes.

    ``information`` is ``EngineInspector.get_engine_information`` as JSON, of an engine built with detailed profiling;
    with any other, layers are mere names.
    """
    half = floating = 0
    for layer in json.loads(information)["Layers"]:
        if isinstance(layer, str):
            raise ValueError("the engine was not built with detailed profiling")
        types = [output["Format/Datatype"] for output in layer.get("Outputs", ())]
        is_half = any("Half" in text or "FP16" in text for text in types)
        half += is_half
        floating += is_half or any("Float" in text or "FP32" in text for text in types)
    return half, floating
