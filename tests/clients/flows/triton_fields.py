"""Holds our messages against tritonclient's: reads our file descriptor from standard input, prints what differs."""

import sys

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from tritonclient.grpc import model_config_pb2, service_pb2


def named(messages, prefix=""):
    """Every message by its name, the nested ones too."""
    found = {}
    for message in messages:
        found[prefix + message.name] = message
        found |= named(message.nested_type, f"{prefix}{message.name}.")
    return found


def fields(message):
    scalar = {value: name for name, value in FieldDescriptorProto.Type.items()}
    labels = {value: name for name, value in FieldDescriptorProto.Label.items()}
    return {f.name: (f.number, scalar[f.type], labels[f.label], f.type_name) for f in message.field}


def methods(file):
    return {
        m.name: (m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in file.service[0].method
    }


ours = FileDescriptorProto.FromString(sys.stdin.buffer.read())
service, config = FileDescriptorProto(), FileDescriptorProto()
service_pb2.DESCRIPTOR.CopyToProto(service)
model_config_pb2.DESCRIPTOR.CopyToProto(config)
theirs = named([*service.message_type, *config.message_type])
compared = 0
for name, message in named(ours.message_type).items():
    for field, form in fields(message).items():
        compared += 1
        if fields(theirs[name]).get(field) != form:
            print(f"{name}.{field}: {form}, but {fields(theirs[name]).get(field)} there")
for enum in ours.enum_type:
    there = next(each for each in config.enum_type if each.name == enum.name)
    if [(v.name, v.number) for v in enum.value] != [(v.name, v.number) for v in there.value]:
        print(f"{enum.name} differs")
for name, form in methods(ours).items():
    compared += 1
    if methods(service).get(name) != form:
        print(f"{name}: {form}, but {methods(service).get(name)} there")
print(f"{compared} compared")
