"""A client of the local RPC that shares no code with ours.

The stubs are made from dfdaemon.proto by grpc_tools.protoc. Prints one JSON object: the answer, or the status.
"""

import argparse
import json
import os
import sys

import dfdaemon_pb2 as pb
import dfdaemon_pb2_grpc as stubs
import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status


def last(updates):
    """Follows a transfer to its result, which is the last message."""
    messages = list(updates)
    kinds = [message.WhichOneof("update") for message in messages]
    assert kinds[-1] == "result" and set(kinds[:-1]) <= {"progress"}, kinds
    return messages[-1].result


def call(channel, arguments):
    daemon = stubs.DaemonStub(channel)
    name = {"cid": arguments.cid, "tag": arguments.tag}
    if arguments.call == "stat":
        return daemon.StatTask(pb.StatTaskRequest(**name), timeout=20)
    if arguments.call == "import":
        return last(daemon.ImportTask(pb.ImportTaskRequest(**name, path=arguments.path), timeout=20))
    if arguments.call == "export":
        request = pb.ExportTaskRequest(**name, path=arguments.path, force=arguments.force)
        return last(daemon.ExportTask(request, timeout=20))
    if arguments.call == "delete":
        return daemon.DeleteTask(pb.DeleteTaskRequest(**name), timeout=20)
    if arguments.call == "list":
        entries = [entry for batch in daemon.ListTasks(pb.ListTasksRequest(), timeout=20) for entry in batch.entries]
        return pb.ListTasksResponse(entries=entries)
    if arguments.call == "download":
        return last(daemon.Download(pb.DownloadRequest(url=arguments.path), timeout=20))
    if arguments.call == "daemon-health":
        return daemon.CheckHealth(pb.CheckHealthRequest(), timeout=20)
    request = health_pb2.HealthCheckRequest(service=arguments.cid)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)


def status(error):
    told = {"status": error.code().name, "message": error.details()}
    details = rpc_status.from_call(error)
    for detail in details.details if details else []:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            told |= {"reason": info.reason, "domain": info.domain, "hint": info.metadata.get("hint")}
    return told


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--uid", type=int, help="become this user before connecting")
    parser.add_argument("--cid", default="")
    parser.add_argument("--tag", default="")
    parser.add_argument("--path", default="")
    parser.add_argument("--force", action="store_true")
    calls = ["stat", "import", "export", "delete", "list", "download", "daemon-health", "health"]
    parser.add_argument("call", choices=calls)
    arguments = parser.parse_args()
    if arguments.uid is not None:
        os.setgroups([])
        os.setgid(arguments.uid)
        os.setuid(arguments.uid)
    # By default the path of the socket would be the authority, which is not a valid one.
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{arguments.socket}", options=options) as channel:
        try:
            answer = call(channel, arguments)
        except grpc.RpcError as error:
            print(json.dumps(status(error)))
            return
    fields = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    print(json.dumps({"status": "OK"} | fields))


if __name__ == "__main__":
    sys.exit(main())
