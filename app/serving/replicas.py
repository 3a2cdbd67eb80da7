"""The server on a Ray cluster: replicas of the same application, each with its own base model, behind Ray's proxy.

    serve run app.serving.replicas:application adapters=/shared/adapters pictures=/shared/served max_replicas=4 gpus=1

A client that sends the header ``serve-multiplexed-model-id`` with the adapter's name reaches a replica that has the
adapter in memory, if one has it and is not busy. Replicas are added while each has more requests than fill two batches.
"""

from typing import Annotated, Any, cast

from anyio import to_thread
from fastapi import Depends
from pydantic import Field
from ray import serve

from app.serving.api import create_app, require_key
from app.serving.keys import BASE, Key
from app.serving.setup import ServerOptions, make_service


class ClusterOptions(ServerOptions):
    """Options of a server on a cluster. All paths must be the same on every node."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    gpus: float = Field(0, ge=0, description="GPUs of a replica.")
    adapters_per_replica: int = Field(1000, ge=1, description="Adapters that a replica announces as in memory.")


def application(options: ClusterOptions) -> Any:
    """Return the application for ``serve run`` or ``ray.serve.run``."""
    scaling = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": 2 * options.batch_size,
    }

    class Server:
        """A replica."""

        def __init__(self) -> None:
            self.service = make_service(options)

        def __serve_build_asgi_app__(self) -> Any:
            return create_app(self.service, Depends(self.announce))

        async def announce(self, key: Annotated[Key, Depends(require_key)]) -> None:
            """Prepare the adapter of the request's header, so that Ray's router knows that it is here."""
            if (name := serve.get_multiplexed_model_id()) and key.may_use(name):
                await cast(Any, self.adapter)(name)  # a method, which Ray's decorator hides

        @serve.multiplexed(max_num_models_per_replica=options.adapters_per_replica)
        async def adapter(self, name: str) -> str:
            """Prepare an adapter."""
            if name != BASE:
                await to_thread.run_sync(self.service.store.get, name, 1.0)
            return name

        def check_health(self) -> None:
            """Raise RuntimeError if the engine has ended: Ray then replaces the replica."""
            if not self.service.engine.is_alive:
                raise RuntimeError("the engine has ended")

    deployed: Any = serve.deployment(
        serve.ingress()(Server), name="hra-diffusion", autoscaling_config=scaling,
        max_ongoing_requests=4 * options.batch_size,  # a busy replica leaves requests for its adapters to others
        max_queued_requests=options.max_queue, ray_actor_options={"num_gpus": options.gpus},
    )  # fmt: skip
    return deployed.bind()
