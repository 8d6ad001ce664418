-- Removes an event from all totals, whether it is recorded already or arrives later.
-- Voiding it again changes nothing.
create or replace function token_tracking_raw.void_token_usage(
    p_tenant_id text, p_idempotency_key text, p_reason text
) returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    problem constant text := coalesce(
        token_tracking_raw.text_problem('tenant_id', p_tenant_id, token_tracking_raw.max_text()),
        token_tracking_raw.text_problem(
            'idempotency_key', p_idempotency_key, token_tracking_raw.max_text()
        ),
        token_tracking_raw.text_problem('reason', p_reason, 1000)
    );
begin
    perform token_tracking_raw.require_durable_commit();
    if problem is not null then
        perform token_tracking_raw.reject_usage_event(
            json_build_object(
                'void', json_build_object(
                    'tenant_id', p_tenant_id, 'idempotency_key', p_idempotency_key, 'reason', p_reason
                )
            ),
            problem
        );
        return false;
    end if;
    insert into token_tracking_raw.usage_voids (tenant_id, idempotency_key, reason, voided_by)
    values (p_tenant_id, p_idempotency_key, p_reason, session_user)
    on conflict do nothing;
    return true;
end
$$;

-- Records the owner of an agent from an instant until the next recorded instant; null
-- ends the ownership. For an instant that has an owner already it records a correction,
-- unless the owner is the same. A call with an id that is sent again changes nothing,
-- whatever was recorded since.
create or replace function token_tracking_raw.record_agent_owner_once(
    p_agent_id text, p_owner_tenant_id text, p_valid_from timestamptz, p_call_id uuid
) returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    problem constant text := coalesce(
        token_tracking_raw.text_problem('agent_id', p_agent_id, token_tracking_raw.max_text()),
        case
            when p_owner_tenant_id is not null
                then token_tracking_raw.text_problem(
                    'owner_tenant_id', p_owner_tenant_id, token_tracking_raw.max_text()
                )
        end,
        case
            when p_valid_from is null
                then 'valid_from: missing; must be from 2000-01-01 to 9999-12-31 UTC'
            when
                p_valid_from < token_tracking_raw.earliest_time()
                or p_valid_from >= '10000-01-01 00:00:00+00'
                then 'valid_from: a time out of range; must be from 2000-01-01 to 9999-12-31 UTC'
        end
    );
    latest record;
begin
    perform token_tracking_raw.require_durable_commit();
    if problem is not null then
        perform token_tracking_raw.reject_usage_event(
            json_build_object(
                'agent_owner', json_build_object(
                    'agent_id', p_agent_id, 'owner_tenant_id', p_owner_tenant_id, 'valid_from', p_valid_from::text
                ),
                'call_id', p_call_id
            ),
            problem
        );
        return false;
    end if;
    if p_call_id is not null then
        insert into token_tracking_raw.agent_owner_calls (call_id) values (p_call_id) on conflict do nothing;
        if not found then
            return true;
        end if;
    end if;
    -- Of two writers of the same instant the slower one finds its revision taken and
    -- tries the next one. This needs no lock, which any login could hold. In each round
    -- one writer finishes.
    for attempt in 1..1000 loop
        select owners.revision, owners.owner_tenant_id
        into latest
        from token_tracking_raw.agent_owners as owners
        where owners.agent_id = p_agent_id and owners.valid_from = p_valid_from
        order by owners.revision desc
        limit 1;
        if latest.revision is not null and latest.owner_tenant_id is not distinct from p_owner_tenant_id then
            return true;
        end if;
        insert into token_tracking_raw.agent_owners (
            agent_id, valid_from, revision, owner_tenant_id, recorded_by
        )
        values (
            p_agent_id, p_valid_from, coalesce(latest.revision, 0) + 1, p_owner_tenant_id, session_user
        )
        on conflict (agent_id, valid_from, revision) do nothing;
        if found then
            return true;
        end if;
    end loop;
    raise lock_not_available using message = 'other writers keep recording owners of this agent at this instant';
end
$$;

create or replace function token_tracking_raw.record_agent_owner(
    p_agent_id text, p_owner_tenant_id text, p_valid_from timestamptz default now()
) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    select token_tracking_raw.record_agent_owner_once(p_agent_id, p_owner_tenant_id, p_valid_from, null)
$$;
