"""Questions about shares of the revenue and about own costs: are they what rules and rows say, and are they posted?"""

from __future__ import annotations

from typing import Final

from billing.verify.questions import Question, sliced, whole

QUESTIONS: Final[tuple[Question, ...]] = (
    sliced(
        "shares",
        "P5",
        "Every party's share of a posting is what the rules of their time give of each of its charges.",
        "shares of postings",
        # Largest remainder once more, in SQL: whole parts, and one unit more for the largest remainders.
        """
        with covered as (
          select charge.posting_id, call_id, charge.model, amount, rule.role, rule.party, rule.ppm,
              row_number() over (
                partition by call_id, rule.role, rule.party
                order by rule.organization_id is null, rule.model is null
              ) as place
            from charge
            join (
              select charge.call_id as call, rule.* from charge
                join revenue_share rule on rule.organization_id = charge.organization_id
                where charge.posting_id between :low and :high
              union all
              select charge.call_id, rule.* from charge
                join revenue_share rule on rule.organization_id is null
                where charge.posting_id between :low and :high
            ) rule on rule.call = charge.call_id
            where charge.posting_id between :low and :high and amount <> 0 and exists (select from revenue_share)
              and (rule.model is null or rule.model = charge.model) and rule.effective @> charge.created_at
        ), applied as (
          select * from covered where place = 1
        ), part as (
          select posting_id, call_id, model, amount, role, party, abs(amount)::numeric * ppm as exact from applied
          union all
          select posting_id, call_id, model, amount, null, null, abs(amount)::numeric * (1000000 - sum(ppm))
            from applied group by 1, 2, 3, 4
        ), ranked as (
          select *, abs(amount) - sum(div(exact, 1000000)) over (partition by call_id) as left_over,
              row_number() over (
                partition by call_id
                order by mod(exact, 1000000) desc, role collate "C" nulls last, party collate "C"
              ) as place
            from part
        ), due as (
          select posting_id, role, party, model,
              sum(sign(amount::numeric) * (div(exact, 1000000) + case when place <= left_over then 1 else 0 end))
                as amount
            from ranked where role is not null group by 1, 2, 3, 4
        ), given as (
          select * from share where posting_id between :low and :high
        )
        select format('posting %s, %s %s of %s', posting_id, role, party, model) as subject,
            coalesce(due.amount, 0) as expected, coalesce(given.amount, 0) as found,
            coalesce(due.amount, 0) <> coalesce(given.amount, 0) as wrong
          from due full join given using (posting_id, role, party, model)
        """,
    ),
    sliced(
        "shares_posted",
        "P5",
        "The shares of every posting are what its transfers brought from revenue to what is owed to such parties.",
        "roles of postings",
        """
        with given as (
          select posting_id,
              case role when 'model_owner' then 'model_owner_payable' when 'reseller' then 'reseller_payable'
                else 'infrastructure_payable' end as account,
              sum(amount) as amount
            from share where posting_id between :low and :high group by 1, 2
        ), moved as (
          select transfer.posting_id, side.kind as account,
              sum(case when side.id = credit_account then amount else -amount end) as amount
            from transfer
            join posting on posting.id = transfer.posting_id and posting.kind = 'charge_batch'
            join account side on side.id in (debit_account, credit_account)
              and side.kind in ('model_owner_payable', 'infrastructure_payable', 'reseller_payable')
            where transfer.posting_id between :low and :high group by 1, 2
        )
        select format('posting %s, %s', posting_id, account) as subject, coalesce(given.amount, 0) as expected,
            coalesce(moved.amount, 0) as found, coalesce(given.amount, 0) <> coalesce(moved.amount, 0) as wrong
          from given full join moved using (posting_id, account)
        """,
    ),
    whole(
        "costs_posted",
        "P5",
        "The costs of every posting are what its transfers brought from what is owed to providers to cost.",
        "postings of costs",
        """
        with counted as (
          select posting_id, sum(amount) as amount from cost group by 1
        ), moved as (
          select posting.id as posting_id,
              coalesce(sum(case 'provider_cost' when debit.kind then amount when credit.kind then -amount end), 0)
                as amount
            from posting
            left join transfer on transfer.posting_id = posting.id
            left join account debit on debit.id = debit_account
            left join account credit on credit.id = credit_account
            where posting.kind = 'cost' group by 1
        )
        select format('posting %s', posting_id) as subject, coalesce(counted.amount, 0) as expected,
            coalesce(moved.amount, 0) as found,
            counted.amount is distinct from moved.amount as wrong
          from counted full join moved using (posting_id)
        """,
    ),
)
