"""The messages of KEDA's external scalers, as `externalscaler.proto` of KEDA 2 numbers them.

They are few and small, so they are described here and need no generated code. What Weir does not
use (`StreamMetricSpec`, which KEDA treats as optional) is left out.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE: Final = "externalscaler"
SERVICE: Final = f"{PACKAGE}.ExternalScaler"

_Type = tuple[int, bool] | tuple[str, bool]
"""A protobuf type or a message's name, and whether the field is repeated."""
_TEXT: Final[_Type] = (Field.TYPE_STRING, False)
_INTEGER: Final[_Type] = (Field.TYPE_INT64, False)
_NUMBER: Final[_Type] = (Field.TYPE_DOUBLE, False)
_ENTRY: Final = "ScalerMetadataEntry"

_MESSAGES: Final[dict[str, dict[str, _Type]]] = {
    "ScaledObjectRef": {
        "name": _TEXT,
        "namespace": _TEXT,
        "scalerMetadata": (f"ScaledObjectRef.{_ENTRY}", True),
    },
    "IsActiveResponse": {"result": (Field.TYPE_BOOL, False)},
    "MetricSpec": {"metricName": _TEXT, "targetSize": _INTEGER, "targetSizeFloat": _NUMBER},
    "GetMetricSpecResponse": {"metricSpecs": ("MetricSpec", True)},
    "GetMetricsRequest": {"scaledObjectRef": ("ScaledObjectRef", False), "metricName": _TEXT},
    "MetricValue": {"metricName": _TEXT, "metricValue": _INTEGER, "metricValueFloat": _NUMBER},
    "GetMetricsResponse": {"metricValues": ("MetricValue", True)},
}
"""Fields are numbered from 1 in this order."""


def _file() -> Any:
    file = FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        _describe(file.message_type.add(name=name), fields)
    (reference,) = (each for each in file.message_type if each.name == "ScaledObjectRef")
    entry = reference.nested_type.add(name=_ENTRY)
    _describe(entry, {"key": _TEXT, "value": _TEXT})
    entry.options.map_entry = True
    return file


def _describe(message: Any, fields: dict[str, _Type]) -> None:
    for number, (name, (kind, is_repeated)) in enumerate(fields.items(), start=1):
        label = Field.LABEL_REPEATED if is_repeated else Field.LABEL_OPTIONAL
        field = message.field.add(name=name, number=number, label=label)
        if isinstance(kind, str):
            field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
        else:
            field.type = kind


_POOL: Final = DescriptorPool()
_POOL.Add(_file())


def _class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ScaledObjectRef: Final = _class("ScaledObjectRef")
IsActiveResponse: Final = _class("IsActiveResponse")
MetricSpec: Final = _class("MetricSpec")
GetMetricSpecResponse: Final = _class("GetMetricSpecResponse")
GetMetricsRequest: Final = _class("GetMetricsRequest")
MetricValue: Final = _class("MetricValue")
GetMetricsResponse: Final = _class("GetMetricsResponse")
