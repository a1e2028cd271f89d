import java.util.concurrent.CountDownLatch;
import org.apache.zookeeper.ZooKeeper;

/** The official client: it watches many znodes, until it is killed. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        ZooKeeper zookeeper = new ZooKeeper(arguments[0], 6000, event -> {});
        int count = Integer.parseInt(arguments[1]);
        for (int number = 0; number < count; number++) {
            zookeeper.getData(String.format("/watched/znode_%05d", number), true, null);
        }
        new CountDownLatch(1).await();
    }
}
