-- Sums of charges, months that are billed, periods that close, invoices, taxes and payments.

-- Columns -------------------------------------------------------------------------------------------------------------

alter table organization
  add address text,
  add email text,
  add language text not null default 'en',
  add payment_terms_days integer not null default 30,
  add purchase_order text,
  add tax_treatment text,
  add parked_reason text,
  add constraint organization_language_check check (language in ('en', 'ko')),
  add constraint organization_payment_terms_days_check check (payment_terms_days between 0 and 365),
  add constraint organization_tax_treatment_check
    check (tax_treatment in ('standard', 'exempt', 'reverse_charge', 'zero_rated'));

alter table posting add billing_month date;
create index posting_organization_id_billing_month_idx on posting (organization_id, billing_month)
  where billing_month is not null;

alter table organization_balance add open_month date not null default '2000-01-01';

-- Tables --------------------------------------------------------------------------------------------------------------

CREATE TABLE book (
  id SMALLINT NOT NULL,
  closed_until TIMESTAMP WITH TIME ZONE NOT NULL,
  CONSTRAINT book_pk PRIMARY KEY (id),
  CONSTRAINT book_id_check CHECK (id = 1)
);
CREATE TABLE usage_hour (
  organization_id UUID NOT NULL,
  hour TIMESTAMP WITH TIME ZONE NOT NULL,
  project_id UUID NOT NULL,
  api_key_id UUID NOT NULL,
  model TEXT NOT NULL,
  calls BIGINT DEFAULT '0' NOT NULL,
  input_tokens BIGINT DEFAULT '0' NOT NULL,
  cached_tokens BIGINT DEFAULT '0' NOT NULL,
  cache_write_tokens BIGINT DEFAULT '0' NOT NULL,
  output_tokens BIGINT DEFAULT '0' NOT NULL,
  reasoning_tokens BIGINT DEFAULT '0' NOT NULL,
  amount NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  unbilled NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  CONSTRAINT usage_hour_pk PRIMARY KEY (organization_id, hour, project_id, api_key_id, model)
)
 WITH (fillfactor = 80);
CREATE TABLE usage_day (
  organization_id UUID NOT NULL,
  billing_month DATE NOT NULL,
  day DATE NOT NULL,
  project_id UUID NOT NULL,
  model TEXT NOT NULL,
  price_version_ids UUID[] NOT NULL,
  calls BIGINT DEFAULT '0' NOT NULL,
  input_tokens BIGINT DEFAULT '0' NOT NULL,
  cached_tokens BIGINT DEFAULT '0' NOT NULL,
  cache_write_tokens BIGINT DEFAULT '0' NOT NULL,
  output_tokens BIGINT DEFAULT '0' NOT NULL,
  reasoning_tokens BIGINT DEFAULT '0' NOT NULL,
  amount NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  unbilled NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  CONSTRAINT usage_day_pk PRIMARY KEY (organization_id, billing_month, day, project_id, model, price_version_ids)
)
 WITH (fillfactor = 80);
CREATE TABLE seller (
  id SMALLINT NOT NULL,
  legal_name TEXT NOT NULL,
  country TEXT NOT NULL,
  tax_id TEXT,
  address TEXT,
  email TEXT,
  phone TEXT,
  payment_details TEXT,
  invoice_series TEXT DEFAULT 'INV' NOT NULL,
  credit_note_series TEXT DEFAULT 'CN' NOT NULL,
  CONSTRAINT seller_pk PRIMARY KEY (id),
  CONSTRAINT seller_id_check CHECK (id = 1)
);
CREATE TABLE tax_rule (
  id UUID NOT NULL,
  country TEXT,
  treatment TEXT NOT NULL,
  rate_ppm INTEGER NOT NULL,
  is_inclusive BOOLEAN DEFAULT false NOT NULL,
  name TEXT NOT NULL,
  effective TSTZRANGE NOT NULL,
  created_by TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT tax_rule_pk PRIMARY KEY (id),
  CONSTRAINT tax_rule_treatment_check CHECK (treatment in ('standard', 'exempt', 'reverse_charge', 'zero_rated')),
  CONSTRAINT tax_rule_rate_check CHECK (rate_ppm between 0 and 1000000),
  CONSTRAINT tax_rule_untaxed_check CHECK (treatment = 'standard' or rate_ppm = 0),
  CONSTRAINT tax_rule_no_overlap EXCLUDE USING gist (text_range(coalesce(country, ''), coalesce(country, ''), '[]') WITH =, effective WITH &&)
);
CREATE TABLE billing_month (
  organization_id UUID NOT NULL,
  month DATE NOT NULL,
  timezone TEXT NOT NULL,
  starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
  cut_off_at TIMESTAMP WITH TIME ZONE NOT NULL,
  CONSTRAINT billing_month_pk PRIMARY KEY (organization_id, month),
  CONSTRAINT billing_month_bounds_check CHECK (starts_at < ends_at and ends_at <= cut_off_at),
  CONSTRAINT billing_month_organization_id_fk FOREIGN KEY(organization_id) REFERENCES organization (id)
);
CREATE TABLE invoice_series (
  id TEXT NOT NULL,
  last_number BIGINT DEFAULT '0' NOT NULL,
  CONSTRAINT invoice_series_pk PRIMARY KEY (id)
);
CREATE TABLE invoice (
  id UUID NOT NULL,
  organization_id UUID NOT NULL,
  kind TEXT NOT NULL,
  corrects UUID,
  state TEXT NOT NULL,
  series TEXT NOT NULL,
  number BIGINT,
  currency TEXT NOT NULL,
  month DATE,
  starts_at TIMESTAMP WITH TIME ZONE,
  ends_at TIMESTAMP WITH TIME ZONE,
  issued_on DATE,
  due_on DATE,
  subtotal NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  tax NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  total NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  rounding NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  settled NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  buyer JSONB DEFAULT '{}'::jsonb NOT NULL,
  seller JSONB DEFAULT '{}'::jsonb NOT NULL,
  tax_detail JSONB DEFAULT '{}'::jsonb NOT NULL,
  korea JSONB,
  language TEXT DEFAULT 'en' NOT NULL,
  purchase_order TEXT,
  reason TEXT,
  pdf_sha256 BYTEA,
  posting_id BIGINT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  finalized_at TIMESTAMP WITH TIME ZONE,
  closed_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT invoice_pk PRIMARY KEY (id),
  CONSTRAINT invoice_kind_check CHECK (kind in ('invoice', 'credit_note')),
  CONSTRAINT invoice_state_check CHECK (state in ('draft', 'open', 'paid', 'void', 'uncollectible')),
  CONSTRAINT invoice_language_check CHECK (language in ('en', 'ko')),
  CONSTRAINT invoice_number_check CHECK ((state = 'draft') = (number is null)),
  CONSTRAINT invoice_corrects_check CHECK ((kind = 'credit_note') = (corrects is not null)),
  CONSTRAINT invoice_total_check CHECK (total = subtotal + tax and tax >= 0),
  CONSTRAINT invoice_settled_check CHECK (settled >= 0 and settled <= greatest(total, 0)),
  CONSTRAINT invoice_series_number_key UNIQUE (series, number),
  CONSTRAINT invoice_organization_id_fk FOREIGN KEY(organization_id) REFERENCES organization (id),
  CONSTRAINT invoice_corrects_fk FOREIGN KEY(corrects) REFERENCES invoice (id),
  CONSTRAINT invoice_posting_id_fk FOREIGN KEY(posting_id) REFERENCES posting (id)
);
CREATE UNIQUE INDEX invoice_one_a_month_key ON invoice (organization_id, month) WHERE kind = 'invoice' and month is not null and state <> 'void';
CREATE INDEX invoice_organization_id_idx ON invoice (organization_id, id);
CREATE TABLE invoice_line (
  invoice_id UUID NOT NULL,
  seq INTEGER NOT NULL,
  kind TEXT NOT NULL,
  description TEXT NOT NULL,
  project_id UUID,
  project_name TEXT,
  model TEXT,
  meter TEXT,
  price_version_id UUID,
  quantity NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  unit_price BIGINT,
  amount NUMERIC(38, 0) NOT NULL,
  rounded NUMERIC(38, 0) NOT NULL,
  CONSTRAINT invoice_line_pk PRIMARY KEY (invoice_id, seq),
  CONSTRAINT invoice_line_kind_check CHECK (kind in ('usage', 'credit', 'rebate', 'adjustment', 'item')),
  CONSTRAINT invoice_line_invoice_id_fk FOREIGN KEY(invoice_id) REFERENCES invoice (id)
);
CREATE TABLE payment (
  id UUID NOT NULL,
  organization_id UUID NOT NULL,
  provider TEXT NOT NULL,
  reference TEXT NOT NULL,
  amount NUMERIC(38, 0) NOT NULL,
  currency TEXT NOT NULL,
  received_at TIMESTAMP WITH TIME ZONE NOT NULL,
  grant_id UUID,
  refunded NUMERIC(38, 0) DEFAULT '0' NOT NULL,
  posting_id BIGINT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT payment_pk PRIMARY KEY (id),
  CONSTRAINT payment_amount_check CHECK (amount > 0),
  CONSTRAINT payment_refunded_check CHECK (refunded between 0 and amount),
  CONSTRAINT payment_provider_reference_key UNIQUE (provider, reference),
  CONSTRAINT payment_organization_id_fk FOREIGN KEY(organization_id) REFERENCES organization (id),
  CONSTRAINT payment_grant_id_fk FOREIGN KEY(grant_id) REFERENCES credit_grant (id),
  CONSTRAINT payment_posting_id_fk FOREIGN KEY(posting_id) REFERENCES posting (id)
);
CREATE INDEX payment_organization_id_idx ON payment (organization_id);
CREATE TABLE allocation (
  id BIGINT GENERATED BY DEFAULT AS IDENTITY,
  invoice_id UUID NOT NULL,
  payment_id UUID,
  credit_note_id UUID,
  amount NUMERIC(38, 0) NOT NULL,
  posting_id BIGINT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT allocation_pk PRIMARY KEY (id),
  CONSTRAINT allocation_amount_check CHECK (amount <> 0),
  CONSTRAINT allocation_source_check CHECK ((payment_id is null) <> (credit_note_id is null)),
  CONSTRAINT allocation_invoice_id_fk FOREIGN KEY(invoice_id) REFERENCES invoice (id),
  CONSTRAINT allocation_payment_id_fk FOREIGN KEY(payment_id) REFERENCES payment (id),
  CONSTRAINT allocation_credit_note_id_fk FOREIGN KEY(credit_note_id) REFERENCES invoice (id),
  CONSTRAINT allocation_posting_id_fk FOREIGN KEY(posting_id) REFERENCES posting (id)
);
CREATE INDEX allocation_invoice_id_idx ON allocation (invoice_id);
insert into book (id, closed_until) values (1, '2000-01-01T00:00:00Z');

-- Accounts of the seller that are new, for the currencies there are.
insert into account (organization_id, kind, currency)
  select null, kind, currency
    from (select distinct currency from account) known
    cross join unnest(array[
      'tax_payable', 'bad_debt', 'model_owner_payable', 'infrastructure_payable', 'reseller_payable', 'provider_cost',
      'provider_payable'
    ]) kind
  on conflict do nothing;

-- What was booked before ----------------------------------------------------------------------------------------------

alter table posting disable trigger posting_append_only;
update posting set billing_month = date_trunc('month', effective_at at time zone organization.timezone)::date
  from organization
  where organization.id = posting.organization_id and posting.kind = 'charge_batch';
alter table posting enable trigger posting_append_only;

create function tollgate_unbilled(funding jsonb) returns numeric
  language sql immutable strict parallel safe set search_path = pg_catalog as $$
  select coalesce(sum((source ->> 1)::numeric), 0) from jsonb_array_elements(funding) source
    where source ->> 0 = 'unbilled'
$$;

insert into usage_hour
  select organization_id, date_trunc('hour', ended_at at time zone 'UTC') at time zone 'UTC', project_id, api_key_id,
      model, count(*) filter (where corrects is null), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens),
      sum(output_tokens), sum(reasoning_tokens), sum(amount), sum(tollgate_unbilled(funding))
    from charge group by 1, 2, 3, 4, 5;

insert into usage_day
  select charge.organization_id, posting.billing_month, (charge.ended_at at time zone organization.timezone)::date,
      project_id, model, price_version_ids, count(*) filter (where corrects is null), sum(input_tokens),
      sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens), sum(reasoning_tokens), sum(amount),
      sum(tollgate_unbilled(funding))
    from charge
    join posting on posting.id = charge.posting_id
    join organization on organization.id = charge.organization_id
    group by 1, 2, 3, 4, 5, 6;

-- Closed periods ------------------------------------------------------------------------------------------------------

-- The row is read with a lock: a period closes after every posting that is under way, and before every later one.
create function tollgate_refuse_closed() returns trigger
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
  until timestamptz;
begin
  select closed_until into until from book for share;
  if exists (select from added where effective_at < until) then
    raise exception 'the period is closed: nothing is posted before %', until using errcode = 'check_violation';
  end if;
  return null;
end $$;

create trigger posting_refuse_closed after insert on posting referencing new table as added
  for each statement execute function tollgate_refuse_closed();

create function tollgate_close_forward_only() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
  if new.closed_until >= old.closed_until then return new; end if;
  raise exception 'a closed period is never opened again; date the correction in an open one'
    using errcode = 'restrict_violation', table = tg_table_name;
end $$;

create trigger book_close_forward_only before update on book
  for each row execute function tollgate_close_forward_only();
create trigger book_keep before delete on book for each row execute function tollgate_deny();
create trigger book_no_truncate before truncate on book for each statement execute function tollgate_deny();

-- Invoices that were issued ---------------------------------------------------------------------------------------------

-- What is on an issued invoice stays: only its state, what was paid of it and its file are noted later.
create function tollgate_keep_issued() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
  if old.state = 'draft'
    or (new.state <> 'draft'
      and to_jsonb(new) - array['state', 'settled', 'closed_at', 'pdf_sha256', 'reason', 'korea']
        = to_jsonb(old) - array['state', 'settled', 'closed_at', 'pdf_sha256', 'reason', 'korea'])
  then
    return new;
  end if;
  raise exception 'an issued invoice is not changed: issue a credit note, or void it'
    using errcode = 'restrict_violation', table = tg_table_name;
end $$;

create trigger invoice_keep_issued before update on invoice for each row execute function tollgate_keep_issued();

create function tollgate_delete_draft() returns trigger
  language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
  if tg_table_name = 'invoice' then
    if old.state = 'draft' then return old; end if;
  elsif not exists (select from invoice where id = old.invoice_id and state <> 'draft') then
    return old;
  end if;
  raise exception 'an issued invoice is not deleted: void it' using errcode = 'restrict_violation', table = tg_table_name;
end $$;

create trigger invoice_delete_draft before delete on invoice for each row execute function tollgate_delete_draft();
create trigger invoice_line_delete_draft before delete on invoice_line
  for each row execute function tollgate_delete_draft();
create trigger invoice_line_append_only before update on invoice_line
  for each row execute function tollgate_deny();
create trigger invoice_no_truncate before truncate on invoice for each statement execute function tollgate_deny();
create trigger invoice_line_no_truncate before truncate on invoice_line
  for each statement execute function tollgate_deny();
create trigger billing_month_append_only before update or delete on billing_month
  for each row execute function tollgate_deny();
create trigger allocation_append_only before update or delete on allocation
  for each row execute function tollgate_deny();
create trigger payment_keep before delete on payment for each row execute function tollgate_deny();
