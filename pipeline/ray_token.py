"""Whether a cluster's Ray asks for a token, and whether ours will do: asked of its head before we join it, in some 20 ms.

Ray itself tries a wrong token for 20 seconds. With one that nobody asks for it joins, and the cluster's processes, which have
none to show to ours, end without a reason or wait for ever.

Not here: joining (cluster.py).
"""

from __future__ import annotations

from typing import Any

import grpc
from ray import _raylet

from jointseg.errors import InputError

raylet: Any = _raylet  # it is compiled
QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray's own clients ask a head first, with their token."""
WHERE = "in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names"


def refuse_other_token(address: str) -> None:
    """Raise InputError where the Ray at HOST:PORT asks for a token that we lack, or for none and we have one.

    A head that answers otherwise, such as one behind TLS, and a token that is not to be found, are left to Ray.
    """
    asked_here: bool = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
    tokens = raylet.AuthenticationTokenLoader.instance()
    if asked_here and not tokens.has_token(ignore_auth_mode=True):
        return
    ours: dict[str, str] = tokens.get_token_for_http_header() if asked_here else {}
    match _answer(address, {}):
        case grpc.StatusCode.OK if ours:
            raise InputError(
                f"RAY_AUTH_MODE: token, but the Ray at {address!r} asks for none, and its processes could not answer this one; "
                "allowed: to leave it unset, or a head that was started with RAY_AUTH_MODE=token and the same token"
            )
        case grpc.StatusCode.UNAUTHENTICATED if not ours:
            raise InputError(
                f"RAY_ADDRESS: the Ray at {address!r} asks for a token; set RAY_AUTH_MODE=token, with the head's token, {WHERE}"
            )
        case grpc.StatusCode.UNAUTHENTICATED if _answer(address, ours) is grpc.StatusCode.UNAUTHENTICATED:
            raise InputError(f"RAY_ADDRESS: the Ray at {address!r} asks for another token than ours; set the head's, {WHERE}")


def _answer(address: str, token: dict[str, str]) -> grpc.StatusCode:
    """How the head answers who shows this token: OK, UNAUTHENTICATED, or what says nothing of tokens."""
    direct = [("grpc.enable_http_proxy", 0)]  # as Ray's own
    with grpc.insecure_channel(address, options=direct) as channel:
        try:
            channel.unary_unary(QUESTION)(b"", metadata=tuple(token.items()), timeout=10)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
