-- What no column can hold: append-only tables, balances kept by the database, prices that are never edited, partitions.
-- Functions that write for the program run as their owner, so that the program's role needs no right to the table.

-- Append-only ---------------------------------------------------------------------------------------------------------

create function tollgate_deny() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
  raise exception '% is append-only: % is refused; book a correction instead', tg_table_name, lower(tg_op)
    using errcode = 'restrict_violation', table = tg_table_name;
end $$;

create trigger charge_append_only before update or delete on charge
  for each row execute function tollgate_deny();
create trigger transfer_append_only before update or delete on transfer
  for each row execute function tollgate_deny();
create trigger posting_append_only before update or delete on posting
  for each row execute function tollgate_deny();
create trigger grant_draw_append_only before update or delete on grant_draw
  for each row execute function tollgate_deny();
create trigger audit_log_append_only before update or delete on audit_log
  for each row execute function tollgate_deny();

create trigger charge_no_truncate before truncate on charge
  for each statement execute function tollgate_deny();
create trigger transfer_no_truncate before truncate on transfer
  for each statement execute function tollgate_deny();
create trigger posting_no_truncate before truncate on posting
  for each statement execute function tollgate_deny();
create trigger grant_draw_no_truncate before truncate on grant_draw
  for each statement execute function tollgate_deny();
create trigger audit_log_no_truncate before truncate on audit_log
  for each statement execute function tollgate_deny();

-- Balances ------------------------------------------------------------------------------------------------------------

-- Once per statement and account, in the order of ids: two postings that meet in an account wait, never deadlock.
create function tollgate_apply_transfers() returns trigger
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  wrong text;
begin
  select format('%s to %s', debit.currency, credit.currency) into wrong
    from added
    join account debit on debit.id = added.debit_account
    join account credit on credit.id = added.credit_account
    where debit.currency <> credit.currency limit 1;
  if found then
    raise exception 'transfer: an amount cannot change its currency (%)', wrong using errcode = 'check_violation';
  end if;

  insert into account_balance as balance (account_id, debits, credits)
    select side.account_id, sum(side.debit), sum(side.credit)
      from (
        select debit_account as account_id, amount as debit, 0 as credit from added
        union all
        select credit_account, 0, amount from added
      ) side
      group by side.account_id
      order by side.account_id
    on conflict (account_id) do update
      set debits = balance.debits + excluded.debits, credits = balance.credits + excluded.credits;

  select format('%s of organization %s', account.kind, account.organization_id) into wrong
    from added
    join account on account.id = added.debit_account
    join account_balance balance on balance.account_id = account.id
    where account.kind in ('customer_prepaid', 'customer_promo') and balance.credits < balance.debits limit 1;
  if found then
    raise exception 'transfer: % would fall below zero', wrong using errcode = 'check_violation';
  end if;
  return null;
end $$;

create trigger transfer_apply after insert on transfer referencing new table as added
  for each statement execute function tollgate_apply_transfers();

-- Prices --------------------------------------------------------------------------------------------------------------

create function tollgate_close_price_only() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
  if to_jsonb(new) - 'effective' = to_jsonb(old) - 'effective'
    and upper_inf(old.effective) and not upper_inf(new.effective) and not isempty(new.effective)
    and lower(new.effective) is not distinct from lower(old.effective)
    and lower_inc(new.effective) = lower_inc(old.effective)
  then
    return new;
  end if;
  raise exception 'price_version is never edited: end its range, then insert a new version'
    using errcode = 'restrict_violation', table = tg_table_name;
end $$;

create trigger price_version_close_only before update on price_version
  for each row execute function tollgate_close_price_only();
create trigger price_version_keep before delete on price_version
  for each row execute function tollgate_deny();
create trigger price_version_no_truncate before truncate on price_version
  for each statement execute function tollgate_deny();

create function tollgate_raise_catalog_revision() returns trigger
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
  update catalog_revision set revision = revision + 1;
  return null;
end $$;

create trigger backend_revision after insert or update or delete or truncate on backend
  for each statement execute function tollgate_raise_catalog_revision();
create trigger model_revision after insert or update or delete or truncate on model
  for each statement execute function tollgate_raise_catalog_revision();
create trigger deployment_revision after insert or update or delete or truncate on deployment
  for each statement execute function tollgate_raise_catalog_revision();
create trigger price_version_revision after insert or update or delete or truncate on price_version
  for each statement execute function tollgate_raise_catalog_revision();

-- Partitions ----------------------------------------------------------------------------------------------------------

-- The smallest UUIDv7 of a moment: models.ids.first_uuid7 in SQL.
create function tollgate_first_uuid7(moment timestamptz) returns uuid
  language sql stable strict set search_path = pg_catalog as $$
  select rpad(lpad(to_hex((extract(epoch from moment) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;

-- Makes the partitions of the month before `present`, its own and the next three; answers the names it made.
-- Attached, not created in place, because that locks the parent against nobody who inserts. A month whose charges
-- already lie in the default partition stays there: nothing is moved, nothing is lost.
create function tollgate_ensure_partitions(present timestamptz) returns text[]
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp
  set timezone = 'UTC' set lock_timeout = '5s' as $$
declare
  made text[] := '{}';
  month timestamptz;
  name text;
  first uuid;
  past uuid;
begin
  for month in
    select generate_series(
      date_trunc('month', present) - interval '1 month', date_trunc('month', present) + interval '3 months', '1 month'
    )
  loop
    name := 'charge_y' || to_char(month, 'YYYY"m"MM');
    first := tollgate_first_uuid7(month);
    past := tollgate_first_uuid7(month + interval '1 month');
    continue when to_regclass('public.' || name) is not null;
    continue when exists (select from charge_default where call_id >= first and call_id < past);
    execute format('create table public.%I (like public.charge including defaults including constraints)', name);
    execute format(
      'create trigger charge_no_truncate before truncate on public.%I for each statement execute function public.tollgate_deny()',
      name
    );
    execute format('alter table public.charge attach partition public.%I for values from (%L) to (%L)', name, first, past);
    made := made || name;
  end loop;
  return made;
end $$;

revoke all on function tollgate_ensure_partitions(timestamptz) from public;

create table charge_default partition of charge default;
create trigger charge_no_truncate before truncate on charge_default
  for each statement execute function tollgate_deny();

-- First rows ----------------------------------------------------------------------------------------------------------

insert into shard (id) select generate_series(0, 15);
insert into catalog_revision (id, revision) values (1, 1);
select tollgate_ensure_partitions(now());
