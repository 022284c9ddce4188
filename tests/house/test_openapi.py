"""The OpenAPI page knows every route, the metered ones too, and is complete enough to be used."""

from __future__ import annotations

from gateway.app import make_api
from models.call import Endpoint


def test_metered_endpoints_are_on_the_page() -> None:
    page = make_api(docs_enabled=True).openapi()
    for endpoint in Endpoint:
        operation = page["paths"][str(endpoint)]["post"]
        ((media_type, content),) = operation["requestBody"]["content"].items()
        assert media_type == ("multipart/form-data" if endpoint.hears else "application/json")
        example, schema = content["example"], content["schema"]
        assert set(schema["required"]) <= set(example) <= set(schema["properties"])
        assert set(operation["security"][0]) <= set(page["components"]["securitySchemes"])


def test_every_operation_says_what_it_does() -> None:
    page = make_api(docs_enabled=True).openapi()
    operations = [operation for path in page["paths"].values() for operation in path.values()]
    assert all(operation["summary"] for operation in operations)
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)


def test_the_page_begins_with_what_developers_call() -> None:
    page = make_api(docs_enabled=True).openapi()
    tags = [tag for path in page["paths"].values() for operation in path.values() for tag in operation["tags"]]
    assert list(dict.fromkeys(tags))[:2] == ["Calls", "Models"]
