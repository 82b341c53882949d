from contextlib import AbstractAsyncContextManager

from .config import AioConfig

class AioSession:
    def get_config_variable(self, logical_name: str) -> str | None: ...
    def create_client(
        self,
        service_name: str,
        region_name: str | None = None,
        *,
        endpoint_url: str | None = None,
        config: AioConfig | None = None,
    ) -> AbstractAsyncContextManager[object]: ...

def get_session() -> AioSession: ...
