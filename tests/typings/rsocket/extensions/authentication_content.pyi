from .authentication import Authentication
from .composite_metadata_item import CompositeMetadataItem

class AuthenticationContent(CompositeMetadataItem):
    authentication: Authentication | None
    def __init__(self, authentication: Authentication | None = None) -> None: ...
