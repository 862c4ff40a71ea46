//! An answer that anybody may ask for and that takes something from those who make it: it is made for the first and
//! serves the others for a while. Never makes one sooner because somebody left before it came.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// How long an answer serves, and the least time between two.
const FRESH_FOR: Duration = Duration::from_secs(1);

pub struct Fresh<T>(Mutex<Last<T>>);

struct Last<T> {
    /// When it was asked for, then when it came.
    at: Option<Instant>,
    answer: Option<Arc<T>>,
}

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(Mutex::new(Last { at: None, answer: None }))
    }
}

impl<T> Fresh<T> {
    /// The last answer, or that of `ask`; who comes meanwhile waits for it.
    pub async fn get(&self, ask: impl Future<Output = T>) -> Arc<T> {
        let mut last = self.0.lock().await;
        if let Some(at) = last.at.filter(|at| at.elapsed() < FRESH_FOR) {
            match &last.answer {
                Some(answer) => return answer.clone(),
                // Who asked left, and those who were asked have had the work all the same.
                None => sleep_until(at + FRESH_FOR).await,
            }
        }
        *last = Last { at: Some(Instant::now()), answer: None };
        let answer = Arc::new(ask.await);
        *last = Last { at: Some(Instant::now()), answer: Some(answer.clone()) };
        answer
    }

    /// Has the next one who asks get a new answer. One that is on its way counts as new.
    pub fn forget(&self) {
        if let Ok(mut last) = self.0.try_lock() {
            *last = Last { at: None, answer: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::time::timeout;

    #[tokio::test]
    async fn many_get_one_answer_until_it_is_old_or_forgotten() {
        let (fresh, asked) = (Fresh::default(), Cell::new(0));
        let ask = || async {
            asked.set(asked.get() + 1);
            asked.get()
        };
        let began = Instant::now();
        for _ in 0..1_000 {
            fresh.get(ask()).await;
        }
        assert!(asked.get() <= 1 + began.elapsed().as_secs(), "{} within {:?}", asked.get(), began.elapsed());
        let before = asked.get();
        fresh.forget();
        assert_eq!(*fresh.get(ask()).await, before + 1);
    }

    #[tokio::test]
    async fn who_leaves_before_the_answer_has_nobody_ask_sooner() {
        let (fresh, asked) = (Fresh::<()>::default(), Cell::new(0));
        let began = Instant::now();
        for _ in 0..20 {
            let ask = async {
                asked.set(asked.get() + 1);
                std::future::pending().await
            };
            timeout(Duration::from_millis(1), fresh.get(ask)).await.unwrap_err();
        }
        assert!(asked.get() <= 1 + began.elapsed().as_secs(), "{} within {:?}", asked.get(), began.elapsed());
        let next = timeout(Duration::from_secs(20), fresh.get(async {}));
        next.await.expect("the next one who stays gets an answer");
    }
}
