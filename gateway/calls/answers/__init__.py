"""What the client of a call is told: one kind of answer for each API that clients speak, whole or in a stream."""

from __future__ import annotations

from collections.abc import Callable

from gateway.calls.answers.answer import Answer, End
from gateway.calls.answers.messages import MessageStream, WholeMessage
from gateway.calls.answers.openai import OpenAIStream, WholeAnswer
from gateway.calls.answers.others import Images, Ranking, Transcript, TranscriptStream
from gateway.calls.answers.responses import ResponseStream, WholeResponse
from gateway.calls.metering import Meter
from models.call import CallOrigin, CallRequest, Endpoint
from models.catalog import Deployment

_Kind = Callable[[CallRequest, CallOrigin, Deployment, Meter], Answer]

_STREAMED: dict[Endpoint, _Kind] = {
    Endpoint.RESPONSES: ResponseStream,
    Endpoint.MESSAGES: MessageStream,
    Endpoint.TRANSCRIPTIONS: TranscriptStream,
}
_WHOLE: dict[Endpoint, _Kind] = {
    Endpoint.RESPONSES: WholeResponse,
    Endpoint.MESSAGES: WholeMessage,
    Endpoint.RERANK: Ranking,
    Endpoint.IMAGES: Images,
    Endpoint.TRANSCRIPTIONS: Transcript,
    Endpoint.TRANSLATIONS: Transcript,
}


def answer_to(request: CallRequest, origin: CallOrigin, deployment: Deployment, meter: Meter) -> Answer:
    """The answer to a request, to be made of what a deployment says; `meter` is fed with each event before it is."""
    if request.stream:
        return _STREAMED.get(request.endpoint, OpenAIStream)(request, origin, deployment, meter)
    return _WHOLE.get(request.endpoint, WholeAnswer)(request, origin, deployment, meter)


__all__ = ["Answer", "End", "WholeResponse", "answer_to"]
