"""Questions to the book: each a query that says of every row what it should be, what it is, and whether it is wrong."""

from __future__ import annotations

from typing import Final

from billing.settlement import LATE
from billing.verify.questions import sliced, whole

_SHIFTED: Final = "interval '1 day'"
"""How far the time in a call's id may lie from `created_at`. Exports look for a month's charges no further away."""

_CLOCK: Final = "interval '1 minute'"
"""By how much a gateway's clock may be set back in mid-call."""


_LOST: Final = (
    sliced(
        "calls_booked",
        "P1",
        "Every posting of charges has as many as were booked with it, and every charge is in a posting of its"
        " organization.",
        "postings",
        """
        with booked as (
          select posting_id, organization_id, count(*) as calls
            from charge where posting_id between :low and :high group by 1, 2
        ), batch as (
          select id, organization_id, (source ->> 'calls')::bigint as calls
            from posting where kind = 'charge_batch' and id between :low and :high
        )
        select format('posting %s', coalesce(batch.id, booked.posting_id)) as subject,
            case when batch.id is null then format('a posting of charges of organization %s', booked.organization_id)
              else format('%s charges', batch.calls) end as expected,
            format('%s charges', coalesce(booked.calls, 0)) as found,
            batch.calls is distinct from booked.calls as wrong
          from batch
          full join booked on booked.posting_id = batch.id and booked.organization_id = batch.organization_id
        """,
    ),
    whole(
        "dead_entries",
        "P1",
        "No settled call waits for a person, because its charge could not be booked.",
        "entries set aside",
        """
        select format('entry %s of shard %s', entry_id, shard) as subject, 'a booked charge' as expected,
            reason as found, resolved_at is null as wrong
          from dead_entry
        """,
    ),
)

_DOUBLE: Final = (
    whole(
        "charged_once",
        "P2",
        "No call is charged twice.",
        "calls",
        """
        select format('call %s', call_id) as subject, '1 charge' as expected, format('%s charges', charges) as found,
            charges > 1 as wrong
          from (select call_id, count(*) as charges from charge group by call_id) call
        """,
    ),
    whole(
        "corrected_once",
        "P2",
        "No call is corrected twice.",
        "corrected calls",
        """
        select format('call %s', corrects) as subject, '1 correction' as expected,
            format('%s corrections', corrections) as found, corrections > 1 as wrong
          from (select corrects, count(*) as corrections from charge where corrects is not null group by 1) call
        """,
    ),
)

EXPLAINED: Final = f"""
    select organization.id as organization_id,
        coalesce((
          select sum(charge.amount) from charge
            where charge.organization_id = organization.id and charge.amount > 0
              and ('{LATE}' = any(charge.flags) or charge.corrects is not null)
        ), 0) as late,
        coalesce((
          select sum(transfer.amount) from posting join transfer on transfer.posting_id = posting.id
            where posting.organization_id = organization.id and posting.kind in ('expire', 'void_grant', 'refund')
        ), 0) + coalesce((
          select sum(invoice.tax + greatest(invoice.rounding, 0)) from invoice
            where invoice.organization_id = organization.id and invoice.kind = 'invoice' and invoice.state = 'open'
        ), 0) as taken_back,
        exists (
          select from audit_log
            where audit_log.organization_id = organization.id and audit_log.action = 'organization.updated'
              and audit_log.detail -> 'credit_limit' <> 'null'
        ) as has_new_limit
      from organization
"""  # noqa: S608 - made of constants
"""What may take an organization below its credit limit: calls that were settled after their hold was gone, corrections,
credit that was taken back or refunded while calls ran on it, the tax and the rounding of open invoices, and a limit
that was lowered, which the ledger keeps no amount of."""

_OVERDRAFT: Final = (
    sliced(
        "within_hold",
        "P3",
        "No charge is negative or above the hold that was taken before its call.",
        "charges",
        """
        select format('call %s', call_id) as subject, format('0 to %s', hold) as expected, amount as found,
            amount < 0 or amount > hold as wrong
          from charge where corrects is null and posting_id between :low and :high
        """,
    ),
    whole(
        "overdrafts",
        "P3",
        "No organization owes more than its credit limit, but for late calls, corrections, credit taken back and tax.",
        "organizations",
        # The reasons are looked for where one is needed: to sum all late calls would take longer than all else.
        f"""
        with below as materialized (
          select organization_balance.organization_id as id
            from organization_balance join organization on organization.id = organization_balance.organization_id
            where posted < -credit_limit
        ), explained as materialized (
          {EXPLAINED} where organization.id in (select id from below)
        )
        select format('organization %s', organization.id) as subject, format('at least %s', least) as expected,
            posted as found, posted < least as wrong
          from organization_balance
          join organization on organization.id = organization_balance.organization_id
          left join explained on explained.organization_id = organization.id
          cross join lateral (
            select case when has_new_limit then posted
              else -credit_limit - coalesce(late + taken_back, 0) end as least
          ) bound
        """,  # noqa: S608 - made of constants
    ),
)

_WRITE_AHEAD: Final = (
    sliced(
        "moments",
        "P4",
        "Every call got its id when it was admitted, and ended after that; the books show no more of this promise.",
        "charges",
        f"""
        select format('call %s', call_id) as subject, format('ended after %s, its id of that time', created_at)
            as expected, format('ended at %s, its id of %s', ended_at, made_at) as found,
            ended_at < created_at - {_CLOCK}
              or made_at not between created_at - {_SHIFTED} and created_at + {_SHIFTED} as wrong
          from charge
          cross join lateral (
            select to_timestamp(
              (('x' || left(replace(call_id::text, '-', ''), 12))::bit(48)::bigint / 1000)::double precision
            ) as made_at
          ) id
          where posting_id between :low and :high
        """,  # noqa: S608 - made of constants
    ),
)

_CONSERVATION: Final = (
    whole(
        "conservation",
        "P5",
        "Every organization's balance is the credit it was given, less what was taken back, less its charges.",
        "organizations",
        """
        with given as (
          select posting.organization_id,
              sum(case when credit.organization_id is null then 0 else amount end
                - case when debit.organization_id is null then 0 else amount end) as amount
            from posting
            join transfer on transfer.posting_id = posting.id
            join account credit on credit.id = credit_account
            join account debit on debit.id = debit_account
            where posting.kind <> 'charge_batch' group by 1
        ), charged as (
          select organization_id, sum(amount) as amount from charge group by 1
        )
        select format('organization %s', coalesce(kept.organization_id, charged.organization_id)) as subject,
            coalesce(given.amount, 0) - coalesce(charged.amount, 0) as expected, kept.posted as found,
            kept.posted is distinct from coalesce(given.amount, 0) - coalesce(charged.amount, 0) as wrong
          from organization_balance kept
          full join charged on charged.organization_id = kept.organization_id
          left join given on given.organization_id = kept.organization_id
        """,
    ),
    whole(
        "account_balances",
        "P5",
        "Every account's debits and credits are the sums of its transfers.",
        "accounts",
        """
        with moved as (
          select account_id, sum(debit) as debits, sum(credit) as credits from (
            select debit_account as account_id, amount as debit, 0 as credit from transfer
            union all select credit_account, 0, amount from transfer
          ) side group by account_id
        )
        select format('account %s (%s)', account.id, account.kind) as subject,
            format('%s debits and %s credits', coalesce(moved.debits, 0), coalesce(moved.credits, 0)) as expected,
            format('%s debits and %s credits', coalesce(kept.debits, 0), coalesce(kept.credits, 0)) as found,
            (coalesce(kept.debits, 0), coalesce(kept.credits, 0))
              is distinct from (coalesce(moved.debits, 0), coalesce(moved.credits, 0)) as wrong
          from account
          left join account_balance kept on kept.account_id = account.id
          left join moved on moved.account_id = account.id
        """,
    ),
    sliced(
        "transfers",
        "P5",
        "No transfer changes the currency, and none leaves the accounts of its posting's organization and the seller.",
        "transfers",
        """
        select format('transfer %s/%s', posting_id, seq) as subject,
            format('%s of organization %s or the seller', debit.currency, posting.organization_id) as expected,
            format('%s of %s to %s of %s', debit.currency, coalesce(debit.organization_id::text, 'the seller'),
              credit.currency, coalesce(credit.organization_id::text, 'the seller')) as found,
            debit.currency <> credit.currency
              or coalesce(debit.organization_id, posting.organization_id) is distinct from posting.organization_id
              or coalesce(credit.organization_id, posting.organization_id) is distinct from posting.organization_id
              as wrong
          from transfer
          join posting on posting.id = transfer.posting_id
          join account debit on debit.id = debit_account
          join account credit on credit.id = credit_account
          where transfer.posting_id between :low and :high and posting.id between :low and :high
        """,
    ),
    sliced(
        "charges_posted",
        "P5",
        "The charges of every posting sum to what its transfers brought from the customer to the seller's revenue.",
        "postings",
        """
        with charged as (
          select posting_id, sum(amount) as amount from charge where posting_id between :low and :high group by 1
        ), moved as (
          select posting_id,
              sum(case
                when credit.kind = 'revenue' and debit.organization_id is not null then amount
                when debit.kind = 'revenue' and credit.organization_id is not null then -amount
                else 0 end) as amount
            from transfer
            join posting on posting.id = transfer.posting_id and posting.kind = 'charge_batch'
            join account debit on debit.id = debit_account
            join account credit on credit.id = credit_account
            where transfer.posting_id between :low and :high and posting.id between :low and :high group by 1
        )
        select format('posting %s', posting_id) as subject, coalesce(charged.amount, 0) as expected,
            coalesce(moved.amount, 0) as found, coalesce(charged.amount, 0) <> coalesce(moved.amount, 0) as wrong
          from charged full join moved using (posting_id)
        """,
    ),
    sliced(
        "funding",
        "P5",
        "The sources that paid for a charge sum to its amount.",
        "charges",
        # Nearly all have one source; to unfold the others costs several times as much.
        """
        select format('call %s', call_id) as subject, amount as expected, funding as found,
            amount <> case jsonb_array_length(funding) when 1 then (funding #>> '{0,1}')::numeric
              else (select coalesce(sum((source ->> 1)::numeric), 0) from jsonb_array_elements(funding) source)
              end as wrong
          from charge where posting_id between :low and :high
        """,
    ),
    sliced(
        "draws",
        "P5",
        "What the charges of a posting took from a grant or left unbilled, or gave back, is what the posting moved.",
        "sources of postings",
        """
        with paid as (
          select posting_id, funding #>> '{0,0}' as source, (funding #>> '{0,1}')::numeric as amount
            from charge where posting_id between :low and :high and jsonb_array_length(funding) = 1
          union all
          select posting_id, source ->> 0, (source ->> 1)::numeric
            from charge, jsonb_array_elements(funding) source
            where posting_id between :low and :high and jsonb_array_length(funding) > 1
        ), funded as (
          select posting_id, source, sum(amount) as amount from paid group by 1, 2
        ), batch as (
          select id from posting where kind = 'charge_batch' and id between :low and :high
        ), drawn as (
          select posting_id, grant_id::text as source, amount
            from grant_draw join batch on batch.id = posting_id where posting_id between :low and :high
          union all
          select posting_id, 'unbilled', sum(case when account.id = debit_account then amount else -amount end)
            from transfer
            join batch on batch.id = posting_id
            join account on account.kind = 'unbilled' and account.id in (debit_account, credit_account)
            where posting_id between :low and :high group by 1
        )
        select format('posting %s, source %s', posting_id, source) as subject,
            coalesce(funded.amount, 0) as expected, coalesce(drawn.amount, 0) as found,
            funded.amount is distinct from drawn.amount as wrong
          from funded full join drawn using (posting_id, source)
        """,
    ),
    whole(
        "grants",
        "P5",
        "What is left of every grant is its amount less what was drawn, and nothing is left of a voided one.",
        "grants",
        """
        select format('grant %s', id) as subject,
            case when voided_at is null then credit_grant.amount - coalesce(drawn, 0) else 0 end as expected,
            remaining as found,
            remaining <> credit_grant.amount - coalesce(drawn, 0) or (voided_at is not null and remaining <> 0) as wrong
          from credit_grant
          left join (select grant_id, sum(amount) as drawn from grant_draw group by 1) draws on draws.grant_id = id
        """,
    ),
    whole(
        "balances",
        "P5",
        "Every organization's balance is what is left of its grants less what it owes, by grants and by accounts.",
        "organizations",
        """
        with owned as (
          select organization_id,
              sum(credits - debits) filter (where kind = 'customer_prepaid') as prepaid,
              sum(credits - debits) filter (where kind = 'customer_promo') as promo,
              sum(debits - credits) filter (where kind in ('unbilled', 'receivable')) as owed
            from account join account_balance on account_id = account.id
            where organization_id is not null group by 1
        ), left_over as (
          select organization_id,
              coalesce(sum(remaining) filter (where kind <> 'promo'), 0) as prepaid,
              coalesce(sum(remaining) filter (where kind = 'promo'), 0) as promo
            from credit_grant group by 1
        )
        select format('organization %s', kept.organization_id) as subject,
            format('%s prepaid and %s promotional, less %s owed', coalesce(owned.prepaid, 0), coalesce(owned.promo, 0),
              coalesce(owed, 0)) as expected,
            format('balance %s, grants of %s prepaid and %s promotional', posted, coalesce(left_over.prepaid, 0),
              coalesce(left_over.promo, 0)) as found,
            posted <> coalesce(owned.prepaid, 0) + coalesce(owned.promo, 0) - coalesce(owed, 0)
              or coalesce(owned.prepaid, 0) <> coalesce(left_over.prepaid, 0)
              or coalesce(owned.promo, 0) <> coalesce(left_over.promo, 0) as wrong
          from organization_balance kept
          left join owned on owned.organization_id = kept.organization_id
          left join left_over on left_over.organization_id = kept.organization_id
        """,
    ),
)

_USAGE: Final = (
    whole(
        "usage",
        "P7",
        "The sums by hour and by day, which usage, costs and invoices are made of, are those of the charges.",
        "organizations",
        """
        with charged as (
          select organization_id, count(*) filter (where corrects is null) as calls, sum(input_tokens) as input,
              sum(cached_tokens) as cached, sum(cache_write_tokens) as written, sum(output_tokens) as output,
              sum(reasoning_tokens) as reasoning, sum(images) as images, sum(audio_seconds) as seconds,
              sum(amount) as amount
            from charge group by 1
        ), hours as (
          select organization_id, sum(calls) as calls, sum(input_tokens) as input, sum(cached_tokens) as cached,
              sum(cache_write_tokens) as written, sum(output_tokens) as output, sum(reasoning_tokens) as reasoning,
              sum(images) as images, sum(audio_seconds) as seconds, sum(amount) as amount, sum(unbilled) as unbilled
            from usage_hour group by 1
        ), days as (
          select organization_id, sum(calls) as calls, sum(input_tokens) as input, sum(cached_tokens) as cached,
              sum(cache_write_tokens) as written, sum(output_tokens) as output, sum(reasoning_tokens) as reasoning,
              sum(images) as images, sum(audio_seconds) as seconds, sum(amount) as amount, sum(unbilled) as unbilled
            from usage_day group by 1
        ), moved as (
          select posting.organization_id,
              sum(case when account.id = debit_account then amount else -amount end) as unbilled
            from posting
            join transfer on transfer.posting_id = posting.id
            join account on account.kind = 'unbilled' and account.id in (debit_account, credit_account)
            where posting.kind = 'charge_batch' group by 1
        )
        select format('organization %s', organization_id) as subject,
            format('%s calls, %s in, %s out, %s, %s of it unbilled', charged.calls, charged.input, charged.output,
              charged.amount, coalesce(moved.unbilled, 0)) as expected,
            format('by hour %s calls, %s in, %s out, %s, %s of it unbilled; by day %s calls, %s in, %s out, %s, %s',
              hours.calls, hours.input, hours.output, hours.amount, hours.unbilled, days.calls, days.input,
              days.output, days.amount, days.unbilled) as found,
            (charged.calls, charged.input, charged.cached, charged.written, charged.output, charged.reasoning,
              charged.images, charged.seconds, charged.amount, coalesce(moved.unbilled, 0)) is distinct from
            (hours.calls, hours.input, hours.cached, hours.written, hours.output, hours.reasoning, hours.images,
              hours.seconds, hours.amount, hours.unbilled)
            or hours is distinct from (days.organization_id, days.calls, days.input, days.cached, days.written,
              days.output, days.reasoning, days.images, days.seconds, days.amount, days.unbilled) as wrong
          from charged
          full join hours using (organization_id)
          full join days using (organization_id)
          left join moved using (organization_id)
        """,
    ),
)

QUESTIONS: Final = (*_LOST, *_DOUBLE, *_OVERDRAFT, *_WRITE_AHEAD, *_CONSERVATION, *_USAGE)
