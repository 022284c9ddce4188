"""The words and dates of documents, in each language that they are written in."""

from __future__ import annotations

from datetime import date
from typing import Final

from billing.documents.document import Kind, Language, Mark
from billing.receivables import Bucket, EntryKind
from models.catalog import Meter
from models.invoice import AmendmentReason, LineKind, TaxTreatment

_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

TITLES: Final[dict[tuple[Language, Kind], str]] = {
    ("en", Kind.INVOICE): "Invoice",
    ("en", Kind.CREDIT_NOTE): "Credit note",
    ("en", Kind.STATEMENT): "Statement of account",
    # Not 세금계산서: that is a tax invoice only when the tax service has it.
    ("ko", Kind.INVOICE): "거래명세서",
    ("ko", Kind.CREDIT_NOTE): "수정 거래명세서",
    ("ko", Kind.STATEMENT): "거래 잔액 명세서",
}

MARKS: Final[dict[tuple[Language, Mark], str]] = {
    ("en", Mark.DRAFT): "Draft: not an invoice yet",
    ("en", Mark.VOID): "Void: do not pay",
    ("ko", Mark.DRAFT): "초안: 아직 확정되지 않은 문서입니다",
    ("ko", Mark.VOID): "무효: 지급하지 마십시오",
}

WORDS: Final[dict[str, dict[Language, str]]] = {
    "seller": {"en": "From", "ko": "공급자"},
    "buyer": {"en": "Bill to", "ko": "공급받는자"},
    "name": {"en": "", "ko": "상호"},
    "tax_id": {"en": "Tax ID", "ko": "등록번호"},
    "address": {"en": "", "ko": "주소"},
    "email": {"en": "", "ko": "이메일"},
    "phone": {"en": "", "ko": "전화"},
    "number": {"en": "Number", "ko": "문서번호"},
    "issued": {"en": "Date of issue", "ko": "발행일"},
    "due": {"en": "Due date", "ko": "지급기한"},
    "written": {"en": "Date of the tax invoice", "ko": "작성일자"},
    "period": {"en": "Service period", "ko": "공급기간"},
    "statement_period": {"en": "Period", "ko": "기간"},
    "purchase_order": {"en": "Purchase order", "ko": "주문번호"},
    "corrects": {"en": "Corrects", "ko": "원본 문서"},
    "reason": {"en": "Reason", "ko": "사유"},
    "amendment_reason": {"en": "Reason of amendment", "ko": "수정사유"},
    "original_approval_number": {"en": "Original approval number", "ko": "당초 승인번호"},
    "approval_number": {"en": "Approval number", "ko": "승인번호"},
    "description": {"en": "Description", "ko": "품목"},
    "quantity": {"en": "Quantity", "ko": "수량"},
    "unit_price": {"en": "Unit price", "ko": "단가"},
    "amount": {"en": "Amount", "ko": "금액"},
    "supply_amount": {"en": "Amount", "ko": "공급가액"},
    "supply": {"en": "Supply value", "ko": "공급가액"},
    "subtotal": {"en": "Subtotal", "ko": "공급가액"},
    "rounding": {"en": "Rounding in the subtotal", "ko": "공급가액에 포함된 단수 조정"},
    "tax": {"en": "Tax", "ko": "세액"},
    "total": {"en": "Total", "ko": "합계금액"},
    "credited": {"en": "Total credited", "ko": "합계금액"},
    "paid": {"en": "Paid and credited", "ko": "입금 및 차감액"},
    "open": {"en": "Amount due", "ko": "청구금액"},
    "of": {"en": "of", "ko": "과세표준"},
    "date": {"en": "Date", "ko": "일자"},
    "reference": {"en": "Document", "ko": "문서번호"},
    "movement": {"en": "Description", "ko": "적요"},
    "charged": {"en": "Charged", "ko": "청구"},
    "received": {"en": "Paid", "ko": "입금"},
    "balance": {"en": "Balance", "ko": "잔액"},
    "opening": {"en": "Opening balance", "ko": "이월 잔액"},
    "closing": {"en": "Closing balance", "ko": "마감 잔액"},
    "ageing": {"en": "Open by days overdue", "ko": "연체 일수별 미수금"},
    "not_due": {"en": "Not due", "ko": "기한 전"},
    "terms": {"en": "Payment", "ko": "입금 안내"},
    "notes": {"en": "Notes", "ko": "비고"},
    "page": {"en": "Page", "ko": "쪽"},
}


METERS: Final[dict[Meter, str]] = {
    Meter.INPUT: "입력 토큰",
    Meter.CACHED_INPUT: "캐시 입력 토큰",
    Meter.CACHE_WRITE: "캐시 쓰기 토큰",
    Meter.OUTPUT: "출력 토큰",
    Meter.REASONING: "추론 토큰",
    Meter.REQUEST: "요청",
    Meter.IMAGE: "이미지",
    Meter.AUDIO_SECOND: "오디오 초",
    Meter.GPU_SECOND: "GPU 초",
}
"""Meters in Korean; in English the lines of an invoice name them."""

UNITS: Final[dict[Meter, dict[Language, str]]] = {
    Meter.REQUEST: {"en": "per request", "ko": "요청당"},
    Meter.IMAGE: {"en": "per image", "ko": "이미지당"},
    Meter.AUDIO_SECOND: {"en": "per second", "ko": "초당"},
    Meter.GPU_SECOND: {"en": "per second", "ko": "초당"},
}
"""What the price of a meter is per, where it is per one; tokens are priced per million."""

PER_MILLION: Final[dict[Language, str]] = {"en": "per million tokens", "ko": "백만 토큰당"}

LINES: Final[dict[LineKind, str]] = {
    LineKind.CREDIT: "선불 크레딧 사용",
    LineKind.REBATE: "할인",
    LineKind.ADJUSTMENT: "최소 요금, 구간 단가 및 조정",
}
"""Lines in Korean whose text is ours; an item has the text of whoever wrote it."""

PROJECT: Final[dict[Language, str]] = {"en": "Project", "ko": "프로젝트"}
TAX: Final[dict[Language, str]] = {"en": "Tax", "ko": "부가가치세"}

TREATMENTS: Final[dict[TaxTreatment, dict[Language, str]]] = {
    TaxTreatment.EXEMPT: {"en": "This supply is exempt from tax.", "ko": "면세 거래입니다."},
    TaxTreatment.ZERO_RATED: {"en": "This supply is zero-rated.", "ko": "영세율이 적용되는 거래입니다."},
    TaxTreatment.REVERSE_CHARGE: {
        "en": "Reverse charge: the recipient accounts for the tax.",
        "ko": "대리납부 대상: 공급받는 자가 세액을 납부합니다.",
    },
}

INCLUSIVE: Final[dict[Language, str]] = {
    "en": "Unit prices include tax; the amounts of the lines do not.",
    "ko": "단가에는 세액이 포함되어 있으며, 품목별 금액에는 포함되어 있지 않습니다.",
}

AMENDMENTS: Final[dict[AmendmentReason, dict[Language, str]]] = {
    AmendmentReason.MISTAKE: {"en": "Correction of a mistake", "ko": "기재사항 착오정정"},
    AmendmentReason.VALUE_CHANGED: {"en": "Change of the supply value", "ko": "공급가액 변동"},
    AmendmentReason.CONTRACT_ENDED: {"en": "End of the contract", "ko": "계약의 해제"},
    AmendmentReason.RETURNED: {"en": "Return of goods", "ko": "환입"},
    AmendmentReason.LOCAL_LETTER_OF_CREDIT: {"en": "Local letter of credit", "ko": "내국신용장 사후개설"},
    AmendmentReason.ISSUED_TWICE: {"en": "Issued twice by mistake", "ko": "착오에 의한 이중발급"},
}

ENTRIES: Final[dict[EntryKind, dict[Language, str]]] = {
    EntryKind.INVOICE: {"en": "Invoice", "ko": "청구"},
    EntryKind.VOID: {"en": "Invoice voided", "ko": "청구 무효"},
    EntryKind.CREDIT_NOTE: {"en": "Credit note", "ko": "수정 차감"},
    EntryKind.PAYMENT: {"en": "Payment", "ko": "입금"},
    EntryKind.REFUND: {"en": "Refund", "ko": "환불"},
    EntryKind.WRITE_OFF: {"en": "Written off", "ko": "대손 처리"},
}

BUCKETS: Final[dict[Bucket, str]] = {
    Bucket.NOT_DUE: "",
    Bucket.UP_TO_30: "1–30",
    Bucket.UP_TO_60: "31–60",
    Bucket.UP_TO_90: "61–90",
    Bucket.OVER_90: "> 90",
}


def day(on: date, language: Language) -> str:
    """A date in words, so that nobody takes the day for the month."""
    if language == "ko":
        return f"{on.year}년 {on.month}월 {on.day}일"
    return f"{on.day} {_MONTHS[on.month - 1]} {on.year}"


def span(period: tuple[date, date], language: Language) -> str:
    """A period by its first and its last day; what both have in common is said once."""
    first, last = period
    if language == "ko":
        return f"{day(first, 'ko')} ~ {day(last, 'ko')}"
    if first == last:
        return day(first, "en")
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day}–{day(last, 'en')}"
    if first.year == last.year:
        return f"{first.day} {_MONTHS[first.month - 1]} – {day(last, 'en')}"
    return f"{day(first, 'en')} – {day(last, 'en')}"
