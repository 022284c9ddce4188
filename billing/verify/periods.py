"""Questions about closed periods and about the chain of seals, which show whether the past was rewritten."""

from __future__ import annotations

from typing import Final

from billing.store.seals import CONTENT_1, FORMAT
from billing.verify.questions import Question, sliced, whole

_UNSEALED: Final = "interval '5 minutes'"
"""How long a posting may wait for its seal: workers seal every few seconds."""

QUESTIONS: Final[tuple[Question, ...]] = (
    whole(
        "periods",
        "P5",
        "The trial balance of every closed period is still the ledger's, and its digest that of its lines.",
        "lines of trial balances",
        """
        with moved as materialized (
          select date_trunc('month', posting.effective_at at time zone 'UTC') at time zone 'UTC' as month,
              account.currency, account.kind as account, sum(side.debit) as debits, sum(side.credit) as credits
            from (
              select posting_id, debit_account as account_id, amount as debit, 0 as credit from transfer
              union all select posting_id, credit_account, 0, amount from transfer
            ) side
            join posting on posting.id = side.posting_id
            join account on account.id = side.account_id
            where exists (select from accounting_period)
            group by 1, 2, 3
        ), now_is as (
          select accounting_period.id, currency, account, sum(debits) as debits, sum(credits) as credits
            from accounting_period join moved on moved.month < accounting_period.ends_at group by 1, 2, 3
        ), kept as (
          select accounting_period.id, line.*
            from accounting_period
            cross join lateral jsonb_to_recordset(trial_balance)
              as line (currency text, account text, debits numeric, credits numeric)
        )
        select format('period %s, %s %s', id, currency, account) as subject,
            format('%s debits and %s credits, as when it was closed', kept.debits, kept.credits) as expected,
            format('%s debits and %s credits', now_is.debits, now_is.credits) as found,
            (kept.debits, kept.credits) is distinct from (now_is.debits, now_is.credits) as wrong
          from kept full join now_is using (id, currency, account)
        union all
        select format('period %s', accounting_period.id), encode(accounting_period.digest, 'hex'),
            encode(lines.digest, 'hex'), accounting_period.digest is distinct from lines.digest
          from accounting_period
          cross join lateral (
            select sha256(convert_to(coalesce(string_agg(
                format('%s %s %s %s', line ->> 'currency', line ->> 'account', line ->> 'debits', line ->> 'credits')
                  || chr(10),
                '' order by line ->> 'currency' collate "C", line ->> 'account' collate "C"
              ), ''), 'UTF8')) as digest
              from jsonb_array_elements(trial_balance) line
          ) lines
        union all
        select format('period %s', accounting_period.id), 'that nothing before its end can be posted',
            format('the book is open from %s', closed_until), closed_until < ends_at
          from accounting_period cross join book
        """,
    ),
    sliced(
        "seals",
        "P5",
        "Every posting and its transfers are as they were sealed, and every seal follows the one before.",
        "postings",
        f"""
        with sealed as (
          select seal.seq, seal.posting_id, seal.format, seal.previous, seal.digest, before.digest as expected,
              before.posting_id as after
            from posting_seal seal
            left join posting_seal before on before.seq = seal.seq - 1
            where seal.posting_id between :low and :high
        ), content as (
          {CONTENT_1}
        ), chain as materialized (
          select coalesce(max(posting_id), 0) as head from posting_seal
        )
        select format('posting %s', coalesce(sealed.posting_id, content.posting_id)) as subject,
            case
              when sealed.seq is null then 'a seal'
              when sealed.previous is distinct from coalesce(sealed.expected, decode(repeat('00', 32), 'hex'))
                then format('a seal %s that follows the one before', sealed.seq)
              else format('seal %s, %s', sealed.seq, encode(sealed.digest, 'hex'))
            end as expected,
            case
              when sealed.seq is null then 'none: it was added later, or no worker seals'
              when content.posting_id is null then 'no such posting'
              else encode(sha256(sealed.previous || convert_to(content.content, 'UTF8')), 'hex')
            end as found,
            case
              when sealed.seq is null then content.posting_id <= chain.head or posting.booked_at < now() - {_UNSEALED}
              else content.posting_id is null
                or sealed.format <> {FORMAT}
                or (sealed.expected is null and sealed.seq <> 1)
                or sealed.after >= sealed.posting_id
                or sealed.previous <> coalesce(sealed.expected, decode(repeat('00', 32), 'hex'))
                or sealed.digest <> sha256(sealed.previous || convert_to(content.content, 'UTF8'))
            end as wrong
          from sealed
          full join content on content.posting_id = sealed.posting_id
          left join posting on posting.id = content.posting_id
          cross join chain
        """,  # noqa: S608 - made of constants
    ),
)
