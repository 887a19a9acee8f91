"""An app written for Dapr's lock, with the SDK from PyPI over gRPC. Arguments: a store, a resource."""

import sys
import warnings

import grpc
from dapr.clients import DaprClient
from dapr.clients.grpc._response import UnlockResponseStatus

warnings.simplefilter("ignore")  # "alpha"


def main(store, resource):
    with DaprClient() as client:
        assert client.try_lock(store, resource, "first", 60).success
        # Held: by another, and by the same owner.
        assert not client.try_lock(store, resource, "second", 60).success
        assert not client.try_lock(store, resource, "first", 60).success
        unlock = lambda owner: client.unlock(store, resource, owner).status
        assert unlock("second") == UnlockResponseStatus.lock_belongs_to_others
        assert unlock("first") == UnlockResponseStatus.success
        assert unlock("first") == UnlockResponseStatus.lock_does_not_exist

        # The form that lets go by itself.
        with client.try_lock(store, resource, "second", 60) as lock:
            assert lock
        assert unlock("second") == UnlockResponseStatus.lock_does_not_exist

        try:
            client.try_lock("no-such-store", resource, "first", 60)
            raise AssertionError("a store that is not there")
        except grpc.RpcError as refused:
            assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT, refused
        try:
            client.get_state("store", "key")
            raise AssertionError("a method that is not there")
        except grpc.RpcError as refused:
            assert refused.code() == grpc.StatusCode.UNIMPLEMENTED, refused
        components = client.get_metadata().registered_components
        assert [component.name for component in components] == [store], components


main(*sys.argv[1:])
