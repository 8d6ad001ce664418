select
    build_status.model,
    build_status.run_number,
    newest.run_number as newest_run_number,
    build_status.as_of
from build_status
cross join (
    select max(builds.run_number) as run_number from build_status as builds
) as newest
where build_status.run_number < newest.run_number
