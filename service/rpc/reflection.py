"""The descriptor pools of all services as one, for gRPC reflection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool


class JoinedPools:
    """Looks descriptors up in several pools, with the interface of one.

    The messages of the Open Inference Protocol are in a pool of their own: its public clients
    register the same names in the default pool, which accepts each name only once.
    """

    def __init__(self, pools: Sequence[DescriptorPool]) -> None:
        """Searches the given pools in order, and the default pool last."""
        self._pools: tuple[Any, ...] = (*dict.fromkeys(pools), descriptor_pool.Default())

    def FindFileByName(self, file_name: str) -> FileDescriptor:
        """The file of that name.

        Raises:
            KeyError: if there is none.
        """
        return cast(FileDescriptor, self._first(lambda pool: pool.FindFileByName(file_name)))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file that declares a symbol.

        Raises:
            KeyError: if there is none.
        """
        return cast(FileDescriptor, self._first(lambda pool: pool.FindFileContainingSymbol(symbol)))

    def FindMessageTypeByName(self, full_name: str) -> Descriptor:
        """The message of that name.

        Raises:
            KeyError: if there is none.
        """
        return cast(Descriptor, self._first(lambda pool: pool.FindMessageTypeByName(full_name)))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:
        """An extension of a message.

        Raises:
            KeyError: if there is none.
        """
        return message.file.pool.FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> list[FieldDescriptor]:
        """All extensions of a message."""
        return list(message.file.pool.FindAllExtensions(message))

    def _first(self, find: Callable[[Any], Any]) -> Any:
        *others, last = self._pools
        for pool in others:
            try:
                return find(pool)
            except KeyError:
                continue
        return find(last)
