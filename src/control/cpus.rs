//! Which CPUs get a worker: what the configuration wants of what this process may use. Pure.

use crate::config::Cpus;

/// CPUs that get a worker each, ascending. `allowed` is what affinity and cpuset leave, `quota` the CPU time that
/// the control group may use, in CPUs.
///
/// A quota below the count of CPUs means fewer workers: more of them would be stopped in turn by the scheduler,
/// each with connections in its hands. A list is taken as it is, because whoever wrote it knows the machine.
pub fn choose(wanted: &Cpus, allowed: &[usize], quota: Option<f64>) -> Result<Vec<usize>, String> {
    match wanted {
        Cpus::All => {
            let count = quota.map_or(allowed.len(), |quota| (quota.ceil() as usize).max(1));
            Ok(allowed.iter().copied().take(count).collect())
        }
        Cpus::List(list) => {
            let list: Vec<usize> = list.iter().map(|cpu| usize::from(*cpu)).collect();
            let forbidden: Vec<usize> = list.iter().copied().filter(|cpu| !allowed.contains(cpu)).collect();
            if forbidden.is_empty() {
                return Ok(list);
            }
            Err(format!(
                "workers.cpus names CPU {}, but this process may use only {} (affinity mask and cpuset): change \
                 workers.cpus, or start without taskset, CPUAffinity= or a cpuset that forbids it",
                ranges(&forbidden),
                ranges(allowed)
            ))
        }
    }
}

/// CPUs as a list of ranges, such as `0-3,6`.
pub fn ranges(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let parts = parts.iter().map(|&(first, last)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_means_all_that_is_allowed_within_the_quota() {
        let all = |quota| choose(&Cpus::All, &[1, 2, 5, 6], quota).unwrap();
        assert_eq!(all(None), [1, 2, 5, 6]);
        assert_eq!(all(Some(1.5)), [1, 2]);
        assert_eq!(all(Some(0.2)), [1]);
        assert_eq!(all(Some(64.0)), [1, 2, 5, 6]);
    }

    #[test]
    fn a_listed_cpu_that_is_not_allowed_is_named_with_its_cure() {
        assert_eq!(choose(&Cpus::List(vec![1, 5]), &[0, 1, 5], Some(0.5)), Ok(vec![1, 5]));
        let error = choose(&Cpus::List(vec![0, 3, 4]), &[0, 1, 2, 7], None).unwrap_err();
        assert!(
            error.starts_with("workers.cpus names CPU 3-4, but this process may use only 0-2,7"),
            "{error}"
        );
    }
}
